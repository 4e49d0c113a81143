import shutil

import numpy as np
import pytest
import torch

from partseg.data.dataset import PartSegDataset, concat
from partseg.data.mapper import TrainMapper
from partseg.data.pascal_part import pascal_part_116


def train(root, **options):
    return pascal_part_116(root, "train", mapper=TrainMapper(24, crop_scale=(0.3, 1.0), jitter=0.3), **options)


def same(a, b):
    return all(torch.equal(getattr(a, key), getattr(b, key)) for key in ("image", "object_part", "object"))


def test_sample_is_a_function_of_seed_index_and_draw(pascal_root):
    dataset = train(pascal_root)
    first = dataset[0, 17]
    torch.manual_seed(99)
    np.random.default_rng(1)
    dataset[2, 5]
    assert same(first, dataset[0, 17]) and same(first, train(pascal_root)[0, 17])
    assert not same(first, dataset[0, 18]) and not same(first, train(pascal_root, seed=1)[0, 17])
    assert same(dataset[1], dataset[1, 1])


def test_global_random_states_are_neither_read_nor_moved(pascal_root):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002  the legacy state is what is checked
    train(pascal_root)[0]
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_subset_keeps_order_and_settings(pascal_root):
    dataset = train(pascal_root, seed=3)
    subset = dataset.subset([2, 0])
    assert [record.image_id for record in subset.records] == ["2008_000003", "2008_000001"]
    assert same(subset[1, 7], dataset[0, 7]) and subset.split == "train" and subset.name == dataset.name
    with pytest.raises(ValueError, match="has no records"):
        dataset.subset([])


def test_concat(pascal_root):
    seen, everything = train(pascal_root), train(pascal_root, all_seen=True)
    joined = concat([seen, seen.subset([1])])
    assert len(joined) == 4 and same(joined[3, 2], seen[1, 2])
    with pytest.raises(ValueError, match="vocabulary differs.*all_seen=true"):
        concat([seen, everything])
    with pytest.raises(ValueError, match="at least one"):
        concat([])


def test_manifest_hash_moves_with_the_data_only(pascal_root, tmp_path, label_writer):
    dataset = train(pascal_root)
    copy = tmp_path / "other place" / "Pascal-Part-116"
    shutil.copytree(pascal_root, copy)
    assert train(copy).manifest_hash == dataset.manifest_hash == train(copy, seed=9).manifest_hash
    assert dataset.subset([2, 1, 0]).manifest_hash == dataset.manifest_hash
    assert dataset.subset([0, 1]).manifest_hash != dataset.manifest_hash
    label_writer(copy / "annotations_detectron2_part" / "train" / "2008_000003.png", np.zeros((30, 40), np.uint8))
    assert train(copy).manifest_hash != dataset.manifest_hash


def test_builders_default_mapper_follows_the_split(pascal_root):
    assert pascal_part_116(pascal_root, "train")[0].object_part.shape == (352, 352)
    assert pascal_part_116(pascal_root, "val")[0].object_part.shape == (30, 40)


def test_out_of_range_index(pascal_root):
    assert isinstance(train(pascal_root), PartSegDataset)
    with pytest.raises(IndexError):
        train(pascal_root)[3]
