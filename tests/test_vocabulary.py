import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped
from partseg.vocabulary.words import read_vocabulary

FOLDER = Path(__file__).parents[1] / "partseg" / "vocabulary" / "lists"
NAMES = ("pascal_part_116", "ade20k_part_234", "partimagenet_40")
SMALL = Vocabulary(
    pairs=(
        ("dog", "head"),
        ("cat", "head"),
        ("dog", "tail"),
        ("armchair", "seat"),
        ("chair", "seat"),
        ("chair", "back"),
    ),
    label_objects=("armchair", "boat", "cat", "chair", "dog"),
    unseen_objects=("dog", "boat"),
    prompt_names={"tail": "long tail"},
)


@pytest.fixture(params=NAMES)
def benchmark(request):
    return shipped(request.param)


# The table of the protocols: object-parts, objects with parts, parts; then the same of the seen ones.
@pytest.mark.parametrize(
    ("name", "all_counts", "seen_counts"),
    [
        ("pascal_part_116", (116, 16, 42), (74, 11, 41)),
        ("ade20k_part_234", (234, 44, 85), (176, 33, 83)),
        ("partimagenet_40", (147, 40, 13), (92, 25, 13)),
    ],
)
def test_published_counts(name, all_counts, seen_counts):
    vocabulary = shipped(name)
    for v, counts in ((vocabulary, all_counts), (vocabulary.seen_subset(), seen_counts)):
        assert (v.num_object_parts, v.num_objects, v.num_parts) == counts
    assert vocabulary.name == name and int(vocabulary.seen.sum()) == seen_counts[0]


def test_known_facts_of_the_benchmarks():
    pascal, ade, imagenet = (shipped(name) for name in NAMES)
    assert len(pascal.label_objects) == 20
    assert set(pascal.extra_objects) == {"boat", "chair", "diningtable", "sofa"}
    assert set(pascal.parts) - set(pascal.seen_subset().parts) == {"beak"}
    assert pascal.object_parts[10] == "bicycle's headlight" and pascal.object_parts[80] == "motorbike's saddle"
    assert ade.label_objects == ade.objects == tuple(sorted(ade.objects))
    assert ade.object_parts[0] == "person's arm" and "chest of drawers's apron" in ade.object_parts
    assert imagenet.label_objects == imagenet.objects and imagenet.unseen_objects[0] == "ice bear"


def test_index_maps_agree_with_the_names(benchmark):
    for k, (object_name, part) in enumerate(benchmark.pairs):
        assert benchmark.objects[benchmark.object_of[k]] == object_name
        assert benchmark.parts[benchmark.part_of[k]] == part
        assert benchmark.seen[k] == (object_name not in benchmark.unseen_objects)
        assert benchmark.object_parts[k] == f"{object_name}'s {part}"
        assert benchmark.object_lut[k] == benchmark.object_of[k] and benchmark.part_lut[k] == benchmark.part_of[k]
    for o, object_name in enumerate(benchmark.objects):
        parts = [k for k, pair in enumerate(benchmark.pairs) if pair[0] == object_name]
        assert benchmark.parts_of_object(o).tolist() == parts and benchmark.object_id(object_name) == o
    assert benchmark.object_lut[IGNORE_LABEL] == benchmark.part_lut[IGNORE_LABEL] == IGNORE_LABEL


def test_agrees_with_the_published_lists(root, benchmark):
    """The YAML files against the lists that came with the task, where those lie beside the checkout."""
    path = root.parent / "shared" / "spec" / "classes" / f"{benchmark.name}.json"
    if not path.is_file():
        pytest.skip("the published class lists are not beside the checkout")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert list(benchmark.object_parts) == data["object_parts"]
    assert list(benchmark.label_objects) == data["objects"]
    assert sorted(benchmark.unseen_objects) == sorted(data["unseen_objects"])


def test_no_object_takes_parts_of_another_by_substring():
    """The chair / armchair case: published oracle numbers let one leak into the other."""
    assert SMALL.parts_of_object(SMALL.object_id("chair")).tolist() == [4, 5]
    assert SMALL.parts_of_object(SMALL.object_id("armchair")).tolist() == [3]


def test_small_example_by_hand():
    assert SMALL.objects == ("armchair", "cat", "chair", "dog") and SMALL.extra_objects == ("boat",)
    assert SMALL.parts == ("head", "tail", "seat", "back")
    assert SMALL.object_of.tolist() == [3, 1, 3, 0, 2, 2] and SMALL.part_of.tolist() == [0, 0, 1, 2, 2, 3]
    assert SMALL.seen.tolist() == [False, True, False, True, True, True]
    assert SMALL.label_object_lut[:6].tolist() == [0, BACKGROUND_LABEL, 1, 2, 3, -1]
    assert SMALL.label_object_lut[IGNORE_LABEL] == BACKGROUND_LABEL


def test_tables_to_the_seen_vocabulary():
    seen = SMALL.seen_subset()
    assert seen.pairs == SMALL.pairs[1:2] + SMALL.pairs[3:] and seen.seen.all() and seen.unseen_objects == ()
    assert SMALL.lut_to(seen)[:6].tolist() == [IGNORE_LABEL, 0, IGNORE_LABEL, 1, 2, 3]
    assert SMALL.object_lut_to(seen)[:4].tolist() == [0, 1, 2, IGNORE_LABEL]
    assert SMALL.object_lut_to(seen)[BACKGROUND_LABEL] == BACKGROUND_LABEL
    assert SMALL.lut_to(seen)[IGNORE_LABEL] == SMALL.object_lut_to(seen)[IGNORE_LABEL] == IGNORE_LABEL
    assert SMALL.lut_to(SMALL)[:6].tolist() == list(range(6))
    assert seen.seen_subset() is seen


def test_subset_and_other_unseen_objects():
    subset = SMALL.subset([True, False, False, False, True, False])
    assert subset.pairs == (("dog", "head"), ("chair", "seat")) and subset.objects == ("chair", "dog")
    assert subset.unseen_objects == ("dog",)
    with pytest.raises(ValueError, match="2 entries.*6 object-parts"):
        SMALL.subset([True, False])
    assert SMALL.with_unseen(None) is SMALL and SMALL.with_unseen(()).seen.all()
    with pytest.raises(ValueError, match="unicorn"):
        SMALL.with_unseen(["unicorn"])


def test_mirror_swaps_sides_where_both_exist():
    sided = Vocabulary.from_mapping({"cat": ["left ear", "tail", "right ear"], "dog": ["left ear"]})
    assert sided.mirror_lut[:4].tolist() == [2, 1, 0, 3] and sided.mirror_lut[IGNORE_LABEL] == IGNORE_LABEL


def test_benchmarks_have_no_sides(benchmark):
    assert benchmark.mirror_lut[: len(benchmark)].tolist() == list(range(len(benchmark)))


def test_index_maps_cannot_be_changed():
    for table in (SMALL.object_of, SMALL.object_lut, SMALL.label_object_lut, SMALL.lut_to(SMALL)):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1


def test_prompts():
    assert SMALL.prompts("object_part") == (
        "dog head",
        "cat head",
        "dog long tail",
        "armchair seat",
        "chair seat",
        "chair back",
    )
    assert SMALL.words("object_part")[2] == ("dog long tail", "dog", "long tail")
    assert SMALL.prompts("part") == ("head", "long tail", "seat", "back")
    with pytest.raises(ValueError, match="'pixel' is not one of"):
        SMALL.prompts("pixel")


def test_tire_is_spelled_right_in_prompts_only():
    imagenet = shipped("partimagenet_40")
    assert "tier" in imagenet.parts and "jeep's tier" in imagenet.object_parts
    assert "tire" in imagenet.prompts("part") and "tier" not in imagenet.prompts("part")
    assert "jeep tire" in imagenet.prompts("object_part")
    official = replace(imagenet, prompt_names={})
    assert "jeep tier" in official.prompts("object_part") and official.key != imagenet.key


def test_key_follows_what_matters():
    assert SMALL.key == Vocabulary.from_dict(SMALL.to_dict()).key and len(SMALL.key) == 16
    assert json.loads(json.dumps(SMALL.to_dict())) == SMALL.to_dict()
    changed = (
        SMALL.subset([True] * 5 + [False]),
        SMALL.with_unseen(["dog"]),
        replace(SMALL, prompt_names={}),
        Vocabulary(SMALL.pairs[::-1], SMALL.label_objects, SMALL.unseen_objects, prompt_names=SMALL.prompt_names),
    )
    assert len({SMALL.key, *(v.key for v in changed)}) == 5
    renamed = Vocabulary(SMALL.pairs, SMALL.label_objects, SMALL.unseen_objects, "other", SMALL.prompt_names)
    assert renamed.key == SMALL.key


def test_from_mapping():
    free = Vocabulary.from_mapping({"dog": ["head", "tail "], " car": ("wheel",)})
    assert free.pairs == (("dog", "head"), ("dog", "tail"), ("car", "wheel")) and free.seen.all()
    assert free.label_objects == ("dog", "car")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "vocabulary is empty"),
        ({"dog": []}, "'dog' needs a list of at least one part"),
        ({"dog": "head"}, "'dog' needs a list.*got 'head'"),
        ({"dog": None}, "'dog' needs a list"),
        ({"dog": ["head", 3]}, "must be text, got .3."),
        ({True: ["head"]}, "must be text, got .True."),
        ({"dog": ["head", "head "]}, r"twice: ..dog's head.."),
        ({"dog": ["head"], "dog ": ["head"]}, "twice"),
        ({"dog": ["  "]}, "empty names"),
    ],
)
def test_from_mapping_refuses(mapping, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_mapping(mapping)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": ()}, "is empty"),
        ({"pairs": (("a", "x"), ("a", "x"))}, "twice"),
        ({"pairs": (("a", "x"),), "label_objects": ("a", "b", "b")}, "object classes twice: ..b.."),
        ({"pairs": (("a", "x"),), "label_objects": ("b",)}, r"objects \['a'\] have parts but are not in label_objects"),
        ({"pairs": (("a", "x"),), "unseen_objects": ("c",)}, r"unseen_objects \['c'\].*it has \['a'\]"),
        ({"pairs": (("a", ""),)}, "empty names"),
        ({"pairs": (("caf\u00e9", "x"), ("cafe\u0301", "x"))}, "twice"),
        ({"pairs": (("a", "x"), ("a", "x "))}, "twice"),
        ({"pairs": (("a", "x\ny"),)}, "control characters"),
        ({"pairs": tuple(("a", str(i)) for i in range(65535))}, "labels have 16 bits"),
    ],
)
def test_wrong_vocabularies_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(**arguments)


def test_unknown_class_name_lists_the_known():
    with pytest.raises(KeyError, match="'wolf' is not in vocabulary 'custom'.*armchair"):
        SMALL.object_id("wolf")


def test_names_of_any_script_survive(tmp_path):
    names = {"chien": ["tête", "queue’s tip"], "犬": ["頭", "🐾"], "naïve car's": ["door\u00a0knob"]}
    vocabulary = Vocabulary.from_mapping(names)
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))).key == vocabulary.key
    assert "犬 🐾" in vocabulary.prompts("object_part")
    path = tmp_path / "käfer und teile.yaml"
    path.write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    assert read_vocabulary(path).pairs == vocabulary.pairs


def test_yaml_files_that_are_wrong(tmp_path):
    path = tmp_path / "v.yaml"
    for text, message in (
        ("- dog\n- cat\n", "must map objects to their parts"),
        ("object_parts: [[dog, head]]\nobject: [dog]\n", r"unknown keys \['object'\]"),
        ("object_parts: [dog head]\n", "must list .object, part. pairs of text, got 'dog head'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_vocabulary(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        read_vocabulary(tmp_path / "absent.yaml")


def test_luts_cover_all_16_bit_labels(benchmark):
    for table in (benchmark.object_lut, benchmark.part_lut, benchmark.label_object_lut, benchmark.mirror_lut):
        assert table.shape == (IGNORE_LABEL + 1,) and table.dtype == np.int32
