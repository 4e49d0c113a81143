import pytest
import yaml

from partseg.data import catalog
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.utils.config import config_dir, instantiate


def test_names_are_the_files():
    assert set(catalog.names()) >= {
        "ade20k_part_234",
        "ade20k_part_234_16shot",
        "partimagenet_40",
        "pascal_part_116",
        "pascal_part_116_16shot",
        "toy_pascal_part_116",
    }


def test_get_with_root_data_root_and_overrides(pascal_root):
    by_root = catalog.get("pascal_part_116", root=pascal_root)
    assert by_root.name == "pascal_part_116" and by_root.split == "val" and len(by_root) == 3
    by_data_root = catalog.get("pascal_part_116", split="train", data_root=pascal_root.parent, all_seen=True)
    assert by_data_root.split == "train" and by_data_root.vocabulary.num_object_parts == 116
    mapper = EvalMapper()
    assert catalog.get("toy_pascal_part_116", root=pascal_root, mapper=mapper).mapper is mapper


def test_toy_folder_is_not_taken_for_the_real_one(pascal_root):
    pascal_root.rename(pascal_root.parent / "ToyPascalPart116")
    assert catalog.get("toy_pascal_part_116", data_root=pascal_root.parent).name == "toy_pascal_part_116"
    with pytest.raises(FileNotFoundError):
        catalog.get("pascal_part_116", data_root=pascal_root.parent)


def test_unknown_name_lists_the_known():
    with pytest.raises(KeyError, match="Did you mean 'pascal_part_116'.*ade20k_part_234"):
        catalog.get("pascal_part116")


def test_unknown_argument_is_refused(pascal_root):
    with pytest.raises((TypeError, ValueError), match="shot_count"):
        catalog.get("pascal_part_116", root=pascal_root, shot_count=16)


@pytest.mark.parametrize("path", sorted((config_dir() / "augmentation").glob("*.yaml")), ids=lambda p: p.stem)
def test_augmentations_build(path):
    mapper = instantiate(yaml.safe_load(path.read_text()))
    assert isinstance(mapper, TrainMapper)
    official = path.stem == "official"
    assert (mapper.channel_order, mapper.short_edges) == (("bgr", (800,)) if official else ("rgb", ()))
    size = {"one_object": 512}.get(path.stem, 352)
    assert mapper.unseen_as_background == official and mapper.size == (size, size)


def test_vocabulary_reads_no_data():
    for name, size in (("toy_pascal_part_116", 116), ("ade20k_part_234", 234), ("partimagenet_40", 147)):
        assert len(catalog.vocabulary(name)) == size
    with pytest.raises(KeyError, match="Did you mean"):
        catalog.vocabulary("pascal_part116")
