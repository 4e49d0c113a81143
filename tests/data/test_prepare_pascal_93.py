"""Pascal-Part 93: names by substring, one instance per original part, on real .mat files."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

import prepare_pascal_part_93
from converters.pascal import read_annotation
from converters.pascal_93 import class_of
from partseg.data import catalog
from partseg.data.mapper import EvalMapper
from partseg.utils.arguments import parse
from partseg.vocabulary.shipped import shipped


@pytest.mark.parametrize(
    ("owner", "raw", "expected"),
    [
        ("dog", "lfpa", "paw"),
        ("car", "bliplate", "license plate"),
        ("person", "llarm", "arm"),
        ("person", "lebrow", None),
        ("aeroplane", "stern", None),
        ("bus", "roofside", None),
        ("horse", "lfho", None),
        ("cow", "lhorn", "horn"),
        ("train", "coach_1", None),
        ("bicycle", "fwheel", "wheel"),
        ("bicycle", "chainwheel", None),
    ],
)
def test_original_names(owner, raw, expected):
    assert class_of(owner, raw, official=False) == expected


def test_the_authors_take_chain_wheels_for_wheels():
    assert class_of("bicycle", "chainwheel", official=True) == "wheel"


def test_the_split_is_the_papers():
    names = shipped("pascal_part_93")
    assert (len(names), int(names.seen.sum()), names.unseen_objects) == (93, 77, ("bus", "dog"))
    assert len(names.objects) == 14 and len(names.label_objects) == 20


@pytest.fixture(scope="module")
def converted(samples, tmp_path_factory):
    """The real samples as instances."""
    output, source = tmp_path_factory.mktemp("pascal") / "PascalPart93", samples / "pascal_part"
    val = source / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    words = [f"annotations={source / 'Annotations_Part'}", f"voc={source / 'VOCdevkit'}", f"val_list={val}"]
    prepare_pascal_part_93.main(parse(prepare_pascal_part_93.Options, [*words, f"output={output}", "processes=1"]))
    return output


def test_every_original_part_of_a_class_is_one_instance(converted, samples):
    names = shipped("pascal_part_93")
    checked = 0
    for split in ("train", "val"):
        coco = COCO(converted / f"annotations_{split}.json")
        ids = {category["name"]: category["id"] for category in coco.dataset["categories"]}
        for image in coco.dataset["images"]:
            objects = read_annotation(samples / "pascal_part/Annotations_Part" / f"{Path(image['file_name']).stem}.mat")
            expected = []
            for thing in objects:
                parts = [(class_of(thing.name, raw, official=False), mask) for raw, mask in thing.parts]
                expected += [(f"{thing.name}:{part}", mask) for part, mask in parts if part and mask.any()]
            found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            found = [each for each in found if each["category_id"] <= len(names)]
            assert [each["category_id"] for each in found] == [ids[name] for name, _ in expected]
            for each, (_, mask) in zip(found, expected):
                assert np.array_equal(coco.annToMask(each).astype(bool), mask)
                checked += 1
            assert image["id"] == int(Path(image["file_name"]).stem.replace("_", ""))
    assert checked > 200


def test_instances_are_read_with_their_objects(converted):
    data = catalog.get("pascal_part_93", split="val", root=converted, mapper=EvalMapper(instances="annotated"))
    for sample in (data[i] for i in range(len(data))):
        instances = sample.instances
        parts = instances.level == 0
        assert (instances.parent[parts] >= 0).all() and (instances.parent[~parts] == -1).all()
        owners = instances.label[instances.parent[parts]]
        pairs = [data.vocabulary.pairs[k][0] for k in instances.label[parts].tolist()]
        assert pairs == [data.vocabulary.label_objects[k] for k in owners.tolist()]


def test_training_hides_novel_objects_and_says_what_was_left_out(converted):
    data = catalog.get("pascal_part_93", split="train", root=converted)
    assert len(data.vocabulary) == 77 and "dog" not in data.vocabulary.label_objects
    provenance = json.loads((converted / "provenance.json").read_text())
    assert provenance["left_out"] == {"no part of the 93 classes": 1}
    assert not provenance["comparable_with_benchmark"] and "chain wheels" in provenance["not_comparable_because"]
