"""Pictures as phrases: wordings, what they mean together, draws, hidden classes, and the released PartImageNet."""

import numpy as np
import pytest
import torch

from partseg.data.dataset import PartSegDataset
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.data.partimagenet_all import partimagenet
from partseg.data.pascal_part import pascal_part_116
from partseg.data.phrases import PhraseSource
from partseg.structures import Annotation, Phrase, Record
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped

WORDS = Vocabulary.from_mapping({"dog": ["head", "left ear", "right ear"], "cat": ["head"]})
SIZE = (20, 40)


@pytest.fixture
def dataset(tmp_path, image_writer, rectangle):
    """Builder of one record: two heads of a dog that overlap, one of a cat over the second, and a dog's left ear."""
    image_writer(tmp_path / "a.png", height=20, width=40)
    annotations = tuple(
        Annotation("object_part", label, rectangle(*corners))
        for label, corners in ((0, (0, 0, 10, 10)), (0, (5, 5, 15, 15)), (3, (12, 5, 20, 15)), (1, (30, 0, 40, 5)))
    )

    def make(*, train=True, phrases=None, record=None, vocabulary=WORDS, flip=0.0, **options):
        source = PhraseSource(**options) if phrases is None else phrases
        mapper = EvalMapper(phrases=source)
        if train:
            mapper = TrainMapper(SIZE, flip_probability=flip, about="phrase", phrases=source)
        one = Record("a", str(tmp_path / "a.png"), annotations=annotations, class_name="golden retriever")
        kept = vocabulary.seen_subset() if train else vocabulary
        records = [one if record is None else record(one)]
        return PartSegDataset(records, mapper=mapper, label_vocabulary=vocabulary, vocabulary=kept)

    return make


def rows(*corners):
    mask = torch.zeros(SIZE, dtype=torch.bool)
    for left, top, right, bottom in corners:
        mask[top:bottom, left:right] = True
    return mask


HEADS, CAT, EAR = rows((0, 0, 10, 10), (5, 5, 15, 15)), rows((12, 5, 20, 15)), rows((30, 0, 40, 5))


def drawn(dataset, draws=60):
    """Text -> mask of many draws; a text always has the same mask."""
    found = {}
    for draw in range(draws):
        (phrase,) = dataset[0, draw].phrases
        assert torch.equal(found.setdefault(phrase.text, phrase.mask), phrase.mask)
    return found


def scored(dataset):
    return {phrase.text: phrase for phrase in dataset[0].phrases}


# Wordings -------------------------------------------------------------------------------------------------------------
def test_all_parts_of_a_class_are_one_target(dataset):
    """The union of its annotations, also where another class lies on top, which a label map would not show."""
    found = drawn(dataset())
    assert set(found) == {"dog head", "cat head", "dog left ear"}
    assert torch.equal(found["dog head"], HEADS) and torch.equal(found["cat head"], CAT)
    assert (HEADS & CAT).any() and torch.equal(found["dog left ear"], EAR)


def test_wordings_are_drawn_and_the_first_is_scored(dataset):
    templates = ["{}", "the {part} of the {object}", "the {part} of the {class}"]
    options = {"templates": templates, "generic": {"dog": "animal"}}
    source = PhraseSource(**options)
    assert source.wordings("dog", "head", "golden retriever") == (
        "dog head",
        "the head of the dog",
        "the head of the golden retriever",
        "animal head",
        "the head of the animal",
    )
    assert source.wordings("cat", "head", None) == ("cat head", "the head of the cat")
    assert set(scored(dataset(train=False, **options))) == {"dog head", "cat head", "dog left ear"}
    everything = scored(dataset(train=False, scored="all", **options))
    assert set(drawn(dataset(**options), 200)) == set(everything) and len(everything) == 12
    assert everything["the head of the animal"].label == 0
    with pytest.raises(ValueError, match="need a class name, which this data set lacks"):
        PhraseSource(templates=["{part} of {class}"]).wordings("dog", "head", None)


def test_a_wording_that_fits_several_classes_means_all_of_them(dataset):
    found = drawn(dataset(templates=["the {part}"]))
    assert set(found) == {"the head", "the left ear"} and torch.equal(found["the head"], HEADS | CAT)
    both = scored(dataset(train=False, templates=["{}"], generic={"dog": "pet", "cat": "pet"}, scored="all"))
    assert torch.equal(both["pet head"].mask, HEADS | CAT) and torch.equal(both["cat head"].mask, CAT)


def test_every_annotation_may_be_a_target(dataset):
    phrases = dataset(train=False, targets="annotation")[0].phrases
    assert [(p.text, int(p.mask.sum()), p.label) for p in phrases] == [
        ("dog head", 100, 0),
        ("dog head", 100, 0),
        ("cat head", 80, 3),
        ("dog left ear", 50, 1),
    ]
    masks = {int(dataset(targets="annotation")[0, draw].phrases[0].mask.nonzero()[0][1]) for draw in range(40)}
    assert masks == {0, 5, 12, 30}


def test_left_is_right_in_a_flipped_picture(dataset):
    found = drawn(dataset(flip=1.0, templates=["the {part} of the {object}"]))
    assert set(found) == {"the head of the dog", "the head of the cat", "the right ear of the dog"}
    assert torch.equal(found["the right ear of the dog"], EAR.flip(1))


def test_hidden_classes_are_not_asked_for_in_training(dataset, rectangle):
    unseen = WORDS.with_unseen(["cat"])
    assert set(drawn(dataset(vocabulary=unseen))) == {"dog head", "dog left ear"}
    assert {p.label for p in dataset(vocabulary=unseen, train=False)[0].phrases} == {0, 1, 3}

    def referred(one):
        phrases = (
            Phrase(("the cat's face",), rectangle(12, 5, 20, 15), 3),
            Phrase(("a thing",), rectangle(0, 0, 2, 2)),
        )
        return Record(one.image_id, one.file_name, annotations=one.annotations, phrases=phrases)

    assert set(drawn(dataset(vocabulary=unseen, record=referred), 20)) == {"a thing"}
    assert [p.label for p in dataset(vocabulary=unseen, record=referred, train=False)[0].phrases] == [3, None]


def test_the_draw_is_a_function_of_seed_and_draw(dataset):
    templates = ["{}", "the {part} of the {object}"]
    texts = [[dataset(templates=templates)[0, draw].phrases[0].text for draw in range(20)] for _ in range(2)]
    assert texts[0] == texts[1] and len(set(texts[0])) > 3


def test_label_maps_are_phrases_too(pascal_root):
    """Data sets without annotated parts: the pixels of a class."""
    val = pascal_part_116(pascal_root, "val", mapper=EvalMapper(phrases=PhraseSource()))
    found = [[(p.text, p.label) for p in val[i].phrases] for i in range(3)]
    pairs = shipped("pascal_part_116").pairs
    assert found == [[("cat head", pairs.index(("cat", "head")))], [("dog head", pairs.index(("dog", "head")))], []]
    assert torch.equal(val[0].phrases[0].mask, val[0].object_part == found[0][0][1])
    each = pascal_part_116(pascal_root, "val", mapper=EvalMapper(phrases=PhraseSource(targets="annotation")))
    with pytest.raises(ValueError, match="'2008_000001' has no annotated parts, which phrases.targets=annotation"):
        each[0]


def test_letterboxed_training_keeps_the_aspect(dataset):
    mapper = TrainMapper(64, resize="letterbox", flip_probability=0.0, about="phrase", fill=(9, 8, 7))
    one = dataset().records
    sample = PartSegDataset(one, mapper=mapper, label_vocabulary=WORDS, vocabulary=WORDS)[0]
    assert sample.region == (16, 0, 32, 64) and sample.image[:, 5, 5].tolist() == [9, 8, 7]
    assert not sample.phrases[0].mask[:16].any() and not sample.phrases[0].mask[48:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": []}, "phrases.templates is empty"),
        ({"templates": ["the part"]}, r"'the part' of level object_part must hold"),
        ({"targets": "image"}, "phrases.targets='image' is not 'class' or 'annotation'"),
        ({"scored": "some"}, "phrases.scored='some' is not 'first' or 'all'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        PhraseSource(**options)


# PartImageNet as released ---------------------------------------------------------------------------------------------
@pytest.fixture
def released(tmp_path, image_writer, write_json, rectangle):
    """Builder of a PartImageNet_Seg of three images, the last without a usable annotation."""
    names = [f"{owner} {part}".title() for owner, part in shipped("partimagenet").pairs]

    def make(*, categories=names, **first):
        root = tmp_path / "PartImageNet"
        images = []
        for number, stem in enumerate(("n02099601_1", "n04146614_2", "n99999999_3"), start=1):
            image_writer(root / "images" / "val" / f"{stem}.JPEG", seed=number)
            images.append({"id": number, "file_name": f"{stem}.JPEG", "height": 30, "width": 40})
        entries = [
            (1, 0, rectangle(0, 0, 10, 10)),
            (1, 0, rectangle(20, 0, 30, 10)),
            (2, 25, [*rectangle(0, 0, 8, 8), [5, 5, 5, 5]]),
            (3, 13, [[1, 1, 2, 2]]),
            (3, 13, [[1, 1, 2, 2, 3, 3]]),
        ]
        annotations = [
            {"id": i, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0, "area": 9}
            for i, (image, category, segmentation) in enumerate(entries)
        ]
        annotations[0] |= first
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(categories)],
        }
        write_json(root / "annotations" / "val" / "val.json", content)
        return root

    return make


def test_released_partimagenet(released, caplog):
    """Two annotations are one target; degenerate polygons are skipped, counted and named."""
    templates = ["{}", "the {part} of the {class}"]
    mapper = EvalMapper(phrases=PhraseSource(templates=templates, scored="all"))
    found = partimagenet(released(), "val", mapper=mapper)
    assert [record.class_name for record in found.records] == ["golden retriever", "school bus"]
    assert found.skipped == {"broken_polygon": 3, "empty_annotation": 2, "image_without_annotations": 1}
    assert "annotation 2 has a polygon without area" in caplog.text and "left out" in caplog.text
    dog, bus = found[0].phrases, found[1].phrases
    assert [(p.text, int(p.mask.sum())) for p in dog] == [
        ("quadruped head", 200),
        ("the head of the golden retriever", 200),
    ]
    assert [p.text for p in bus] == ["car tire", "the tire of the school bus"]
    assert found.vocabulary.pairs[bus[0].label] == ("car", "tier") and len(found.vocabulary) == 40
    assert np.unique(found[0].object).tolist() == [0, 65534]


def test_released_partimagenet_with_wrong_entries(released):
    with pytest.raises(ValueError, match=r"categories that are not PartImageNet's: \['car wing'\]"):
        partimagenet(released(categories=["Car Wing"]), "val")
    with pytest.raises(ValueError, match="annotation 0 has image_id 7 and category_id 0; the file lists no such"):
        partimagenet(released(image_id=7), "val")
    with pytest.raises(ValueError, match="split='all' is not one of"):
        partimagenet(released(), "all")
