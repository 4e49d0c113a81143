"""Data sets from COCO-style JSON: names, parents, scores, boxes, phrases, shards; what is left out or refused."""

import json
import logging

import numpy as np
import pytest

from partseg.data.coco_style import coco_style
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.data.phrases import PhraseSource
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.photo_prediction import PhotoPrediction, coco_document
from partseg.vocabulary.names import Vocabulary

HEIGHT, WIDTH = 30, 40
WORDS = "dog: head, tail\ncar: wheel"
DOG, CAR = range(2)
DOG_HEAD, DOG_TAIL, WHEEL = range(3)
BODY = (5, 5, 25, 25)
CATEGORIES = {1: "dog", 2: "dog's head", 3: "dog:tail", 4: "car wheel", 7: "car"}


def image(number, name="a.jpg", **more):
    return {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, **more}


@pytest.fixture
def write(tmp_path, write_json, image_writer):
    """Function: annotations of image 1, and what else the file holds -> the data set's root."""

    def written(annotations=(), *, images=None, categories=None, file="annotations_val.json"):
        images = [image(1)] if images is None else images
        names = CATEGORIES if categories is None else categories
        data = {
            "images": images,
            "annotations": [{"image_id": images[0]["id"], **each} for each in annotations],
            "categories": [{"id": i, "name": name} for i, name in names.items()],
        }
        write_json(tmp_path / file, data)
        for entry in images:
            image_writer(tmp_path / "images" / entry["file_name"], height=HEIGHT, width=WIDTH)
        return tmp_path

    return written


@pytest.fixture
def dog(rectangle):
    """Function: category, box, further keys -> an annotation; ids are given."""
    return lambda category, box=BODY, **more: {"category_id": category, "segmentation": rectangle(*box), **more}


def load(root, **options):
    return coco_style(root, options.pop("split", "val"), **{"vocabulary": WORDS, "mapper": EvalMapper(), **options})


def test_names_are_read_in_three_spellings(write, dog):
    root = write([dog(i) for i in CATEGORIES])
    annotations = load(root).records[0].annotations
    assert [(a.level, a.label) for a in annotations] == [
        ("object", DOG),
        ("object_part", DOG_HEAD),
        ("object_part", DOG_TAIL),
        ("object_part", WHEEL),
        ("object", CAR),
    ]
    other = {1: "dog", 2: "dog:head", 3: "dog tail", 4: "car's wheel", 7: "car"}
    assert load(write([dog(i) for i in CATEGORIES], categories=other)).records[0].annotations == annotations


def test_parents_are_the_positions_of_annotations(write, dog):
    root = write(
        [
            dog(1, id=10, iscrowd=1),
            dog(2, (5, 5, 15, 15), id=11, parent_id=13),
            dog(3, (20, 20, 25, 25), id=12, parent_id=10),
            dog(1, id=13, parent_id=None),
            dog(4, (0, 0, 3, 3), id=14),
        ]
    )
    dataset = load(root, mapper=EvalMapper(instances="annotated"))
    # the crowd is left out: of those that remain, the head's dog is the third, the tail's dog is gone
    assert [a.parent for a in dataset.records[0].annotations] == [2, None, None, None]
    assert dataset.skipped["crowd"] == 1
    found = dataset[0].instances
    assert found.parent.tolist() == [2, -1, -1, -1] and found.boxes[0].tolist() == [5, 5, 15, 15]


def test_scores_are_kept_and_low_ones_left_out(write, dog):
    root = write([dog(2, score=0.9), dog(2, score=0.3), dog(2), dog(1, score=0.5)])
    assert [a.score for a in load(root).records[0].annotations] == [0.9, 0.3, None, 0.5]
    dataset = load(root, min_score=0.5)
    assert [a.score for a in dataset.records[0].annotations] == [0.9, None, 0.5]
    assert dataset.skipped == {"low_score": 1, "broken_polygon": 0}


def test_masks_become_maps_and_boxes_instances(write, dog):
    box_only = {"category_id": 7, "bbox": [30, 2, 5.5, 8]}
    root = write([dog(1), dog(2, (5, 5, 15, 15)), box_only])
    sample = load(root, mapper=EvalMapper(instances="annotated"))[0]
    assert sample.object[20, 20] == DOG and sample.object[0, 0] == BACKGROUND_LABEL
    assert sample.object_part[10, 10] == DOG_HEAD and sample.object_part[20, 20] == IGNORE_LABEL
    assert sample.instances.has_mask.tolist() == [True, True, False]
    assert sample.instances.boxes[2].tolist() == [30, 2, 35.5, 10]
    unknown = sample.object == IGNORE_LABEL  # somewhere in the box is a car
    assert unknown[2:10, 30:36].all() and unknown.sum() == 8 * 6


def test_what_is_left_out_is_counted(write, dog, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = load(
            write(
                [
                    dog(1),
                    dog(1, iscrowd=1),
                    dog(1, area=0),
                    dog(1) | {"segmentation": [[1, 2, 3, 4]]},
                    dog(1) | {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5]}},
                ]
            )
        )
    assert dataset.skipped == {"crowd": 1, "zero_area": 1, "empty_annotation": 1, "broken_rle": 1, "broken_polygon": 1}
    assert len(dataset.records[0].annotations) == 1 and "annotations left out" in caplog.text


def test_images_without_annotations_are_unlabelled(write, dog):
    dataset = load(write([dog(1)], images=[image(1, "b.jpg"), image(2, "a.jpg")]))
    assert [record.image_id for record in dataset.records] == ["a", "b"]
    assert dataset.records[0].annotations == () and dataset[0].object.unique().tolist() == [IGNORE_LABEL]


@pytest.mark.parametrize(
    "annotations",
    [
        {"val": "val_*.json", "train": "absent.json"},
        "{split}_*.json",
        ["val_0.json", "{split}_1.json"],
        "val_[01].json",
    ],
)
def test_shards(write, dog, annotations):
    write([dog(2)], file="val_0.json")
    root = write([dog(3), dog(4)], images=[image(1, "b.jpg"), image(5, "c.jpg")], file="val_1.json")
    dataset = load(root, annotations=annotations)
    found = {record.image_id: len(record.annotations or ()) for record in dataset.records}
    assert found == {"a": 1, "b": 2, "c": 0}


def test_folders_of_images_may_differ_by_split(write, dog):
    root = write([dog(2)], images=[image(1, "deep/a.jpg")])
    for images in ({"val": "images/deep/.."}, "images", "{split}/../images"):
        (root / "val").mkdir(exist_ok=True)
        assert load(root, images=images)[0].name == "a"


def test_phrases_and_their_masks(write, dog):
    """They may stand at annotations of classes, and at ones whose category the vocabulary does not know."""
    root = write(
        [
            dog(2, (5, 5, 15, 15), phrases=["the head", "what barks"]),
            dog(99, (20, 20, 25, 25), phrases=["the left tail"]),
            dog(4, (0, 0, 3, 3)),
        ]
    )
    record = load(root).records[0]
    assert [phrase.texts for phrase in record.phrases] == [("the head", "what barks"), ("the left tail",)]
    assert [a.label for a in record.annotations] == [DOG_HEAD, WHEEL]
    assert load(root)[0].phrases == ()
    source = PhraseSource(scored="all")
    found = load(root, mapper=EvalMapper(phrases=source))[0].phrases
    phrases = {phrase.text: phrase.mask for phrase in found}
    assert [phrase.label for phrase in found] == [0, 0, None], "an annotation of a part is about that part"
    assert [phrase.text for phrase in load(root, mapper=EvalMapper(phrases=PhraseSource()))[0].phrases] == [
        "the head",
        "the left tail",
    ]
    assert list(phrases) == ["the head", "what barks", "the left tail"]
    assert {text: int(mask.sum()) for text, mask in phrases.items()} == {
        "the head": 100,
        "what barks": 100,
        "the left tail": 25,
    }
    flipped = load(root, split="val", mapper=TrainMapper((HEIGHT, WIDTH), flip_probability=1.0, about="phrase"))
    seen = {flipped[0, draw].phrases[0][0]: flipped[0, draw].phrases[0][1] for draw in range(40)}
    assert set(seen) == {"the head", "what barks", "the right tail"}
    assert seen["the right tail"][20:25, WIDTH - 25 : WIDTH - 20].all()


def test_labels_of_images(write, dog):
    root = write([dog(2)], images=[image(1, category_ids=[7, 2])])
    assert load(root).records[0].image_labels == (CAR,)  # a part is no object
    seen = load(root, split="val", unseen_objects=["dog"])
    assert seen.vocabulary.unseen_objects == ("dog",)


def test_training_hides_unseen_objects(write, dog):
    root = write([dog(2), dog(4, (0, 0, 3, 3))], images=[image(1, category_ids=[1, 7])], file="annotations_train.json")
    plain = TrainMapper((HEIGHT, WIDTH), flip_probability=0.0)
    hidden = load(root, split="train", unseen_objects=["dog"], mapper=plain)
    assert hidden.vocabulary.pairs == (("car", "wheel"),)
    assert set(hidden[0].object_part.unique().tolist()) == {0, IGNORE_LABEL} and hidden[0].image_labels == (0,)
    shown = load(root, split="train", unseen_objects=["dog"], all_seen=True, mapper=plain)
    assert len(shown.vocabulary) == 3 and shown[0].image_labels == (DOG, CAR)


def test_predictions_are_labels_of_another_training(write, tmp_path):
    labels = np.full((HEIGHT, WIDTH), 3)
    labels[5:15, 5:20], labels[20:25, 20:25] = DOG_HEAD, WHEEL
    root = write()
    words = Vocabulary.from_mapping({"dog": ["head", "tail"], "car": ["wheel"]})
    prediction = PhotoPrediction(
        labels=labels,
        image=np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        words=words,
        classes=words.object_parts,
        name="a",
        source="a.jpg",
        protocol="pred_all",
    )
    (root / "annotations_val.json").write_text(json.dumps(coco_document([prediction], words)))
    sample = load(root)[0]
    assert np.array_equal(sample.object_part.numpy(), np.where(labels == 3, IGNORE_LABEL, labels))
    assert set(sample.object.unique().tolist()) == {DOG, CAR, BACKGROUND_LABEL}  # parts imply their owners


def test_annotations_count_in_the_manifest(write, dog):
    both = [load(write([dog(2)])).manifest_hash, load(write([dog(3)])).manifest_hash]
    again = load(write([dog(2)])).manifest_hash
    assert both[0] == again != both[1]


# What is refused ------------------------------------------------------------------------------------------------------
def test_nothing_is_known_of_images_whose_annotations_say_nothing_about_classes(write, dog):
    phrase = {"phrases": ["the dog on the left"], "segmentation": dog(1)["segmentation"]}
    for annotations in ([phrase], [dog(1, score=0.1)], [dog(1, iscrowd=1)]):
        dataset = load(write(annotations), min_score=0.5)
        assert dataset.records[0].annotations == () and dataset[0].object.unique().tolist() == [IGNORE_LABEL]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"annotations": "absent.json"},
            r"no annotation file .*absent\.json; set dataset\.annotations or dataset\.root",
        ),
        ({"annotations": "absent_*.json"}, r"no annotation file .*absent_\*\.json"),
        ({"annotations": ["annotations_val.json", "absent.json"]}, r"no annotation file .*absent\.json"),
        ({"split": "train"}, r"no annotation file .*annotations_train\.json"),
    ],
)
def test_missing_files_are_named(write, dog, options, message):
    with pytest.raises(FileNotFoundError, match=message):
        load(write([dog(1)]), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotations": {"train": "x.json"}}, r"dataset\.annotations has no split 'val'; it has \['train'\]"),
        ({"images": {"train": "images"}}, r"dataset\.images has no split 'val'; it has \['train'\]"),
        ({"annotations": ["annotations_val.json"] * 2}, r"list images twice, for example \['a'\]"),
        ({"vocabulary": "dog: head"}, r"3 categories are neither objects nor object-parts.*dog:tail.*\"dog head\""),
        ({"unseen_objects": ["unicorn"]}, "unicorn"),
    ],
)
def test_wrong_settings_are_refused(write, dog, options, message):
    with pytest.raises(ValueError, match=message):
        load(write([dog(1)]), **options)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 5}, r"annotation 3 has category_id 5, which the file's categories lack"),
        ({"image_id": 9}, r"annotation 3 belongs to no image of the file"),
        ({"bbox": [1, 2, 3]}, r"annotation 3 has bbox \[1, 2, 3\], not \[left, top, width, height\]"),
        ({"bbox": [1, 2, 3, -4]}, r"annotation 3 has bbox \[1, 2, 3, -4\]"),
        ({"bbox": [1, 2, 3, "4"]}, r"annotation 3 has bbox"),
        ({"bbox": None}, r"annotation 3 has bbox None"),
        ({"bbox": [1, 2, float("nan"), 4]}, r"annotation 3 has bbox \[1, 2, nan, 4\]"),
        ({"score": None}, r"annotation 3 has score None, not a number"),
        ({"score": "high"}, r"annotation 3 has score 'high', not a number"),
        ({"phrases": "the dog"}, r"annotation 3 has phrases 'the dog', not a list of texts"),
        ({"phrases": [" "]}, r"annotation 3 has phrases \[' '\], not a list of texts"),
        ({"parent_id": 77}, r"annotation 3 has parent_id 77, which no annotation of its image has"),
    ],
)
def test_wrong_annotations_are_refused(write, dog, annotation, message):
    with pytest.raises(ValueError, match=rf"annotations_val\.json: {message}"):
        load(write([dog(1, id=3) | annotation]))


@pytest.mark.parametrize("ids", [None, 1, ["dog"], [99]])
def test_wrong_labels_of_images_are_refused(write, dog, ids):
    with pytest.raises(ValueError, match=r"annotations_val\.json: image a\.jpg has category_ids .*, not ids of"):
        load(write([dog(1)], images=[image(1, category_ids=ids)]))


def test_a_category_without_a_name_is_refused(write, dog, write_json):
    root = write([dog(1)])
    document = json.loads((root / "annotations_val.json").read_text())
    del document["categories"][0]["name"]
    write_json(root / "annotations_val.json", document)
    with pytest.raises(ValueError, match=r"1 categories are neither objects nor object-parts.*\['None'\]"):
        load(root)


def test_a_file_of_another_kind_is_refused(write, dog, write_json):
    root = write([dog(1)])
    write_json(root / "annotations_val.json", [])
    with pytest.raises(ValueError, match="is not a COCO file"):
        load(root)


def test_parts_without_a_name_are_instances_and_in_no_map(write, dog):
    """What a system that names nothing predicts is what the next one learns from: the object, and parts inside it."""
    categories = {0: "part", 1: "dog", 2: "dog's head"}
    parts = [
        dog(0, id=2, parent_id=1, score=0.4),
        dog(0, (5, 5, 10, 10), id=3, parent_id=1),
        dog(2, (6, 6, 9, 9), id=4),
    ]
    root = write([dog(1, id=1), *parts], categories=categories)
    dataset = load(root, mapper=EvalMapper(instances="annotated"))
    assert [(a.level, a.label, a.parent) for a in dataset.records[0].annotations] == [
        ("object", DOG, None),
        ("object_part", -1, 0),
        ("object_part", -1, 0),
        ("object_part", DOG_HEAD, None),
    ]
    found = dataset[0]
    assert found.instances.label.tolist() == [DOG, -1, -1, DOG_HEAD] and found.instances.parent.tolist() == [
        -1,
        0,
        0,
        -1,
    ]
    assert set(found.object_part.unique().tolist()) == {DOG_HEAD, IGNORE_LABEL}
    about = TrainMapper((HEIGHT, WIDTH), about="object", instances="annotated", flip_probability=1.0)
    trained = load(root, split="val", mapper=about)[0]
    assert trained.instances.label.tolist() == [DOG, -1, -1], "its own parts, flipped or not"


def test_a_vocabulary_may_have_an_object_called_part(write, dog):
    root = write([dog(5)], categories={5: "part"})
    (only,) = load(root, vocabulary="part: handle").records[0].annotations
    assert (only.level, only.label) == ("object", 0)
