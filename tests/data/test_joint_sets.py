"""The data that VLPart is trained on together: PACO, LVIS, image labels, PartImageNet's own parts, repeated images."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from partseg.data.coco_style import coco_style, words_of
from partseg.data.dataset import PartSegDataset
from partseg.data.label_folders import label_folders
from partseg.data.loader import MicroBatches, TrainSampler
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.data.mixture import Mixture, Source, mixture
from partseg.data.partimagenet_all import partimagenet
from partseg.data.voc_boxes import voc_boxes
from partseg.structures import Annotation, Checked, Record
from partseg.vocabulary.names import Vocabulary

SQUARE = [[2, 2, 10, 2, 10, 10, 2, 10]]


def write(root, *, images, annotations, categories):
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations_val.json").write_text(json.dumps(content))
    for image in images:
        path = root / "images" / (image.get("file_name") or "train2017/000000391895.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), "grey").save(path)
    return root


def read(root, **options):
    return coco_style(
        root, "val", **{"vocabulary": "categories", "mapper": EvalMapper(instances="annotated"), **options}
    )


PACO = [{"id": 23, "name": "trash_can"}, {"id": 900, "name": "trash_can:lid"}, {"id": 41, "name": "ball"}]


# Original JSON --------------------------------------------------------------------------------------------------------
def test_paco_is_read_with_its_own_names_and_parents(tmp_path):
    """`obj_ann_id` is the annotation's own id for objects and the owner's for parts."""
    annotations = [
        {"id": 5, "image_id": 1, "category_id": 23, "segmentation": SQUARE, "obj_ann_id": 5},
        {"id": 6, "image_id": 1, "category_id": 900, "segmentation": SQUARE, "obj_ann_id": 5},
    ]
    images = [{"id": 1, "file_name": "train2017/1.jpg", "height": 16, "width": 20}]
    data = read(write(tmp_path, images=images, annotations=annotations, categories=PACO))
    vocabulary = data.vocabulary
    assert vocabulary.pairs == (("trash_can", "lid"),) and vocabulary.label_objects == ("trash_can", "ball")
    assert vocabulary.prompts("object_part") == ("trash can lid",)
    instances = data[0].instances
    assert instances.level.tolist() == [1, 0] and instances.parent.tolist() == [-1, 0]


def test_pacos_categories_are_75_objects_and_456_parts(samples, tmp_path):
    categories = json.loads((samples / "paco/metadata/paco_lvis_v1_train_cat_info.json").read_text())
    vocabulary = words_of([(tmp_path, {"categories": categories})], name="paco")
    assert (len(vocabulary.label_objects), len(vocabulary), vocabulary.num_parts) == (75, 456, 200)


def test_lvis_names_its_pictures_by_address_and_has_objects_only(tmp_path):
    image = {"id": 1, "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg", "height": 16, "width": 20}
    annotation = {"id": 1, "image_id": 1, "category_id": 2, "segmentation": SQUARE}
    root = write(tmp_path, images=[image], annotations=[annotation], categories=[{"id": 2, "name": "aerosol_can"}])
    data = read(root)
    assert len(data.vocabulary) == 0 and data.vocabulary.label_objects == ("aerosol_can",)
    assert data.records[0].file_name.endswith("train2017/000000391895.jpg")
    assert data[0].instances.level.tolist() == [1] and data[0].instances.label.tolist() == [0]


def test_a_photo_on_which_nothing_is_outlined_is_scored_and_not_trained_on(tmp_path):
    """COCO has a thousand of them: they count as empty in a score, and detectron2 leaves them out of training."""
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 16, "width": 20} for i in (1, 2)]
    annotation = {"id": 1, "image_id": 1, "category_id": 2, "segmentation": SQUARE}
    root = write(tmp_path, images=images, annotations=[annotation], categories=[{"id": 2, "name": "cup"}])
    assert [len(sample.instances) for sample in read(root)] == [1, 0]
    trained = read(root, mapper=TrainMapper(size=16, instances="annotated", drop_without_parts=True))
    assert {trained[(1, draw)].name for draw in range(4)} == {"1"}
    (tmp_path / "none").mkdir()
    empty = write(tmp_path / "none", images=images, annotations=[], categories=[{"id": 2, "name": "cup"}])
    with pytest.raises(ValueError, match="no image has an instance of an object; check the data"):
        read(empty, mapper=TrainMapper(size=16, instances="annotated", drop_without_parts=True))[0]


def test_boxes_of_no_use_are_left_out_and_counted(tmp_path):
    boxes = {1: [30, 2, 5, 5], 2: [2, 2, 0, 5], 3: [-50, 2, 50, 5], 4: [15, 2, 50, 5]}
    annotations = [{"id": i, "image_id": 1, "category_id": 41, "bbox": box} for i, box in boxes.items()]
    images = [{"id": 1, "file_name": "a.jpg", "height": 16, "width": 20}]
    data = read(write(tmp_path, images=images, annotations=annotations, categories=PACO))
    assert data.skipped["box_outside_image"] == 2 and data.skipped["empty_box"] == 1
    assert data[0].instances.boxes.tolist() == [[15, 2, 20, 7]] and not data[0].instances.has_mask.any()


def test_boxes_are_refused_where_masks_are_needed(tmp_path):
    annotations = [{"id": 1, "image_id": 1, "category_id": 41, "bbox": [2, 2, 5, 5]}]
    images = [{"id": 1, "file_name": "a.jpg", "height": 16, "width": 20}]
    root = write(tmp_path, images=images, annotations=annotations, categories=PACO)
    with pytest.raises(ValueError, match=r"1 images .*without a mask.*a\.jpg.*require_masks=false"):
        read(root, require_masks=True)
    assert len(read(root).records[0].annotations) == 1


def test_a_file_without_categories_needs_a_vocabulary(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "height": 16, "width": 20}]
    with pytest.raises(ValueError, match=r"no categories: give dataset\.vocabulary"):
        read(write(tmp_path, images=images, annotations=[], categories=[]))


# Image labels ---------------------------------------------------------------------------------------------------------
WORDS = {"bird": ["wing"], "dog": ["head"]}


@pytest.fixture
def folders(tmp_path):
    """Two synsets of birds and one of dogs; one photo is large."""
    (tmp_path / "words.yaml").write_text("bird: [wing]\ndog: [head]\n")
    for folder, sides in {"n1": [8, 8, 8], "n2": [8, 40], "n3": [8]}.items():
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for i, side in enumerate(sides):
            Image.new("RGB", (side, 8)).save(tmp_path / "photos" / folder / f"{folder}_{i}.png")
    return tmp_path


def test_folders_are_image_labels(folders):
    mapping = {"dog": "n3", "bird": ["n1", "n2"]}
    data = label_folders(
        folders / "photos",
        vocabulary=str(folders / "words.yaml"),
        folders=mapping,
        most=2,
        largest_side=20,
    )
    assert Counter(data.vocabulary.label_objects[r.image_labels[0]] for r in data.records) == {"bird": 3, "dog": 1}
    assert data.skipped == {"beyond_most": 1, "too_large": 1}
    assert data[0].image_labels == (0,) and data.records[0].annotations is None


def test_folders_that_are_no_objects_are_refused(folders):
    words = str(folders / "words.yaml")
    with pytest.raises(ValueError, match=r"folders \['n1', 'n2', 'n3'\] are no objects .*dataset\.folders="):
        label_folders(folders / "photos", vocabulary=words)
    with pytest.raises(FileNotFoundError, match=r"no folder .*n9 for 'bird'"):
        label_folders(folders / "photos", vocabulary=words, folders={"bird": "n9"})


def test_partimagenets_own_parts(tmp_path):
    categories = [{"id": 0, "name": "Quadruped Head"}, {"id": 25, "name": "Car Tier"}]
    images = [{"id": i, "file_name": f"n01440764_{i}.JPEG", "height": 16, "width": 20} for i in (1, 2)]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 25, "segmentation": SQUARE},
        {"id": 2, "image_id": 1, "category_id": 0, "segmentation": [[1, 1]]},
        {"id": 3, "image_id": 2, "category_id": 0, "segmentation": SQUARE, "iscrowd": 1},
    ]
    folder = tmp_path / "images" / "val" / "n01440764"
    folder.mkdir(parents=True)
    for image in images:
        Image.new("RGB", (20, 16)).save(folder / image["file_name"])
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    data = partimagenet(tmp_path, "val", mapper=EvalMapper(instances="annotated"))
    assert len(data) == 1 and len(data.vocabulary) == 40 and len(data.vocabulary.label_objects) == 11
    assert data.vocabulary.prompts("object_part")[data[0].instances.label[0]] == "car tire"
    assert data.vocabulary.label_objects[data.records[0].image_labels[0]] == "car"
    assert data.skipped["broken_polygon"] == 1 and data.skipped["crowd"] == 1
    assert data.skipped["image_without_annotations"] == 1


# Pascal VOC's boxes ---------------------------------------------------------------------------------------------------
VOC_OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


@pytest.fixture
def voc(tmp_path):
    """Function: objects of picture 000005 -> the folder of a year."""

    def written(*objects, extra=""):
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "ImageSets/Main/val.txt").write_text("000005\n")
        Image.new("RGB", (20, 16)).save(tmp_path / "JPEGImages/000005.jpg")
        size = "<size><width>20</width><height>16</height></size>"
        entries = "".join(VOC_OBJECT.format(*each) for each in objects)
        (tmp_path / "Annotations/000005.xml").write_text(f"<annotation>{size}{entries}{extra}</annotation>")
        return tmp_path

    return written


def test_vocs_boxes_start_at_pixel_one(voc):
    root = voc(
        ("pottedplant", 0, 1, 1, 20, 16), ("dog", 1, 3, 4, 5, 6), ("ufo", 0, 1, 1, 2, 2), ("cat", 0, 5, 5, 30, 9)
    )
    data = voc_boxes(root, "val", mapper=EvalMapper(instances="annotated"))
    assert len(data.vocabulary.label_objects) == 20 and not len(data.vocabulary)
    instances = data[0].instances
    assert instances.boxes.tolist() == [[0, 0, 20, 16], [2, 3, 5, 6]] and not instances.has_mask.any()
    assert [data.vocabulary.label_objects[i] for i in instances.label] == ["pottedplant", "dog"]
    assert instances.counted.tolist() == [True, False], "difficult ones do not count"
    assert data.skipped == {"unknown_object": 1, "box_outside_image": 1}
    parts = voc_boxes(root, "val", vocabulary="pascal_part_93")
    names = parts.label_vocabulary.label_objects
    assert [names[a.label] for a in parts.records[0].annotations] == ["potted plant", "dog"]


def test_broken_voc_files_are_named(voc):
    with pytest.raises(ValueError, match=r"000005\.xml is not an annotation of VOC: an entry lacks 'xmin'"):
        voc_boxes(voc(extra="<object><name>dog</name></object>"), "val")
    with pytest.raises(FileNotFoundError, match=r"train\.txt; dataset\.root must be the folder of one year"):
        voc_boxes(voc(), "train")
    root = voc()
    (root / "Annotations/000005.xml").unlink()
    with pytest.raises(FileNotFoundError, match="'000005' is listed, but there is no"):
        voc_boxes(root, "val")


def test_what_lvis_looked_for_travels_to_the_score(tmp_path):
    annotations = [{"id": 5, "image_id": 1, "category_id": 23, "segmentation": SQUARE}]
    asked = {"neg_category_ids": [900, 41], "not_exhaustive_category_ids": [23]}
    images = [{"id": 1, "file_name": "1.jpg", "height": 16, "width": 20, **asked}, {"id": 2, "file_name": "2.jpg"}]
    data = read(write(tmp_path, images=images, annotations=annotations, categories=PACO))
    assert data[0].checked == Checked(frozenset({("object_part", 0), ("object", 1)}), frozenset({("object", 0)}))
    assert data.records[1].checked is None
    images[0]["neg_category_ids"] = [7]
    with pytest.raises(ValueError, match=r"1\.jpg has neg_category_ids \[7\], not ids of the file's categories"):
        read(write(tmp_path, images=images, annotations=annotations, categories=PACO))


# Batch sizes ----------------------------------------------------------------------------------------------------------
def test_a_source_may_have_micro_batches_of_its_own_size():
    """Sources in turns; each keeps its size, ranks share it, and a resumed stream is the tail of the whole one."""
    options = {"micro_batch_size": 4, "sizes": [None, 2], "weights": (1, 2), "in_turns": True, "seed": 5}
    whole = list(islice(MicroBatches(TrainSampler([7, 3], **options)), 9))
    assert [(batch[0][0], len(batch)) for batch in whole] == [(0, 4), (1, 2), (1, 2)] * 3
    assert all(len({source for source, *_ in batch}) == 1 for batch in whole)
    ranks = [list(islice(MicroBatches(TrainSampler([7, 3], **options, rank=r, world_size=2)), 9)) for r in range(2)]
    assert [a + b for a, b in zip(*ranks)] == whole
    assert list(islice(MicroBatches(TrainSampler([7, 3], **options, start=4)), 5)) == whole[4:]
    with pytest.raises(ValueError, match=r"micro-batch of 3 .*dataset\.sources\.\*\.batch_size"):
        TrainSampler([7, 3], **{**options, "sizes": [None, 3]}, world_size=2)


# Rare classes ---------------------------------------------------------------------------------------------------------
PETS = Vocabulary.from_mapping({"dog": ["head", "tail"], "cat": ["head"]}, name="pets")


def records(labels):
    """One record per entry, with annotations of these object-parts."""
    return [
        Record(f"{i}", f"{i}.jpg", annotations=tuple(Annotation("object_part", k, box=(0, 0, 1, 1)) for k in each))
        for i, each in enumerate(labels)
    ]


@pytest.fixture
def rare():
    """Ten pictures with a dog's head, one of them with a tail too, and one without anything."""
    kept = records([[0]] * 9 + [[0, 1]] + [[]])
    return PartSegDataset(kept, label_vocabulary=PETS, vocabulary=PETS, mapper=EvalMapper(), name="pets")


def test_images_of_rare_classes_are_drawn_more_often(rare):
    source = Source("pets", rare, repeat_threshold=0.5)
    share = {0: 10 / 11, 1: 1 / 11}
    repeats = {k: max(1.0, (0.5 / f) ** 0.5) for k, f in share.items()}
    expected = np.array([repeats[0]] * 9 + [max(repeats.values())] + [1.0])
    np.testing.assert_allclose(source.chances, expected / expected.sum(), rtol=1e-12)
    sampler = TrainSampler([11], micro_batch_size=1, chances=[source.chances], seed=3)
    drawn = Counter(index for _, index, _ in islice(sampler, 11000))
    assert drawn[9] / 11000 == pytest.approx(source.chances[9], rel=0.05)


def test_repeated_draws_do_not_depend_on_processes_or_resumes(rare):
    chances = [Source("pets", rare, repeat_threshold=0.5).chances]
    whole = list(islice(TrainSampler([11], micro_batch_size=4, chances=chances, seed=1), 80))
    ranks = [
        list(islice(TrainSampler([11], micro_batch_size=4, chances=chances, seed=1, rank=r, world_size=2), 40))
        for r in (0, 1)
    ]
    assert [item for g in range(20) for rank in ranks for item in rank[2 * g : 2 * g + 2]] == whole
    later = TrainSampler([11], micro_batch_size=4, chances=chances, seed=1, start=7)
    assert list(islice(later, 20)) == whole[28:48]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"weight": 0}, "weights must be positive, got {'pets': 0.0}"),
        ({"batch_size": 0}, "batch_size must be at least 1, or null, got {'pets': 0}"),
        ({"repeat_threshold": 3.0}, r"repeat_threshold must lie in 0\.\.1"),
        ({"repeat": 0.1}, "'repeat_threshold'"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(entry, message, rare):
    with pytest.raises(ValueError, match=message):
        mixture({"pets": {"dataset": lambda **_: rare, **entry}}, "train")


def test_a_part_of_a_mixture_keeps_its_settings(rare):
    cut = Mixture([Source("pets", rare, 2.0, repeat_threshold=0.5)]).subset(range(5))
    assert (cut.sources[0].weight, cut.sources[0].repeat_threshold, len(cut)) == (2.0, 0.5, 5)
