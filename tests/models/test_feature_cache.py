"""Cached features against computed ones, and everything that must not be taken from the cache."""

import pytest
import torch

from partseg.models.backbone import ClipBackbone


@pytest.fixture
def backbone(tmp_path):
    torch.manual_seed(1)
    backbone = ClipBackbone("partseg-tiny-16", feature_blocks=(0, 2), feature_cache=str(tmp_path / "cache"))
    return backbone.requires_grad_(False)


@pytest.fixture
def runs(backbone, monkeypatch):
    """Number of images in each run of the tower."""
    sizes, tokens = [], backbone._image_tokens

    def counting(x, grid):
        sizes.append(len(x))
        return tokens(x, grid)

    monkeypatch.setattr(backbone, "_image_tokens", counting)
    return sizes


def pictures(count, seed=0):
    return torch.randint(256, (count, 3, 64, 64), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_an_image_is_computed_once_whatever_batch_it_is_in(backbone, runs):
    images = pictures(3)
    first = backbone.encode_image(images)
    again = backbone.encode_image(torch.cat([images.flip(0), pictures(1, seed=1)]))
    assert runs == [3, 1]
    for before, after in zip(first, again, strict=True):
        assert torch.equal(before.flip(0), after[:3])
    backbone._cache = None
    for cached, computed in zip(again, backbone.encode_image(images.flip(0)), strict=True):
        torch.testing.assert_close(cached[:3], computed)


def test_other_weights_precision_and_size_are_other_features(backbone, runs):
    images = pictures(1)
    before = backbone.encode_image(images)[0]
    with torch.no_grad():
        backbone.clip.visual.conv1.weight.mul_(2)
    assert not torch.equal(backbone.encode_image(images)[0], before)
    with torch.autocast("cpu", torch.bfloat16):
        backbone.encode_image(images)
    backbone.encode_image(images[..., :32])
    assert runs == [1, 1, 1, 1]


def test_a_tower_that_trains_and_float_images_pass_by(backbone, runs):
    images = pictures(1)
    backbone.encode_image(images / 255)
    backbone.encode_image(images / 255)
    backbone.requires_grad_(True)
    assert all(x.requires_grad for x in backbone.encode_image(images))
    assert runs == [1, 1, 1]
    assert not backbone._cache.directory.exists()


def test_a_damaged_file_is_computed_again(backbone, runs):
    images = pictures(1)
    whole = backbone.encode_image(images)
    (file,) = backbone._cache.directory.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:200])
    for before, after in zip(whole, backbone.encode_image(images), strict=True):
        assert torch.equal(before, after)
    assert runs == [1, 1] and file.stat().st_size > 200
