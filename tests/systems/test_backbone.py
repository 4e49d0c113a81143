"""The towers against open_clip's own forward, and every way to name a tower."""

import json

import open_clip
import pytest
import torch

from partseg.backbones.clip_layouts import resize_position
from partseg.backbones.clip_vit import ClipBackbone, build_clip, clip_config
from partseg.text.encoder import encode_prompts


@pytest.fixture
def backbone():
    torch.manual_seed(1)
    return ClipBackbone("partseg-tiny-16", feature_blocks=(0, 2))


def test_text_on_trimmed_prompts_equals_open_clip_on_77_tokens(backbone):
    prompts = ["dog", "left foreleg of a horse", "torso"]
    expected = backbone.clip.encode_text(open_clip.tokenize(prompts))
    torch.testing.assert_close(encode_prompts(backbone, prompts, device=torch.device("cpu")), expected)


def _mean_cosine(backbone):
    prompts = ["dog", "dog's head", "wheel", "bus's left side", "torso", "tail"]
    features = torch.nn.functional.normalize(encode_prompts(backbone, prompts, device=torch.device("cpu")), dim=1)
    cosines = features @ features.T
    return cosines[~torch.eye(len(prompts), dtype=torch.bool)].mean()


def test_spread_text_makes_prompts_differ():
    torch.manual_seed(0)
    assert _mean_cosine(ClipBackbone("partseg-tiny-8", feature_blocks=(0,))) > 0.5
    assert _mean_cosine(ClipBackbone("partseg-tiny-8", feature_blocks=(0,), spread_text=True)) < 0.2


def test_spread_text_is_for_random_towers_only():
    with pytest.raises(ValueError, match="spread_text is for random text towers; pretrained='openai'"):
        ClipBackbone("partseg-tiny-8", pretrained="openai", spread_text=True)


def test_image_tokens_equal_open_clip(backbone):
    images = torch.rand(2, 3, 128, 128)
    normalised = (images - backbone.image_mean) / backbone.image_std
    expected = backbone.clip.visual.forward_intermediates(
        normalised, indices=[0, 2], output_fmt="NLC", output_extra_tokens=True
    )
    for tokens, spatial, cls in zip(
        backbone.encode_image(images),
        expected["image_intermediates"],
        expected["image_intermediates_prefix"],
        strict=True,
    ):
        torch.testing.assert_close(tokens, torch.cat([cls, spatial], dim=1))


def test_uint8_and_float_images_are_the_same(backbone):
    images = torch.randint(0, 256, (1, 3, 64, 32), dtype=torch.uint8)
    for a, b in zip(backbone.encode_image(images), backbone.encode_image(images / 255), strict=True):
        torch.testing.assert_close(a, b)


def test_blocks_after_the_last_feature_do_not_run(backbone):
    backbone.clip.visual.transformer.resblocks[3] = None
    assert len(backbone.encode_image(torch.rand(1, 3, 32, 32))) == 2


def test_frozen_tower_runs_without_autograd_and_a_trainable_one_with_it(backbone):
    images = torch.rand(1, 3, 32, 32)
    assert backbone.encode_image(images)[0].requires_grad
    backbone.requires_grad_(False)
    assert not backbone.encode_image(images)[0].requires_grad
    backbone.clip.visual.proj.requires_grad_(True)  # of no use to the features
    assert not backbone.encode_image(images)[0].requires_grad


def test_position_is_resized_without_antialias():
    position = torch.randn(1 + 14 * 14, 8)
    cells = position[1:].view(1, 14, 14, 8).permute(0, 3, 1, 2)
    for grid in ((22, 22), (7, 5)):
        resized = resize_position(position, stored=(14, 14), grid=grid)
        expected = torch.nn.functional.interpolate(cells, grid, mode="bicubic", antialias=False)
        torch.testing.assert_close(resized[1:], expected[0].flatten(1).t())
        assert torch.equal(resized[0], position[0])
    assert resize_position(position, stored=(14, 14), grid=(14, 14)) is position


@pytest.mark.parametrize("name", ["ViT-B-16-quickgelu", "ViT-B-32", "ViT-L-14-336-quickgelu", "partseg-tiny-8"])
def test_towers_by_name(name):
    with torch.device("meta"):
        backbone = ClipBackbone(name, feature_blocks=(1, 2, 3))
    assert backbone.quick_gelu == ("quickgelu" in name or "tiny" in name)
    assert backbone.patch_size == clip_config(name)["vision_cfg"]["patch_size"]


def test_any_json_is_a_tower(tmp_path):
    config = json.loads(json.dumps(clip_config("partseg-tiny-16"))) | {"embed_dim": 24}
    (tmp_path / "mine.json").write_text(json.dumps(config))
    assert build_clip(str(tmp_path / "mine.json")).text_projection.shape == (128, 24)
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        build_clip("nowhere.json")


@pytest.mark.parametrize(
    "name, error, match",
    [
        ("ViT-B-17", KeyError, "ViT-B-16"),
        ("RN50", ValueError, "not a plain CLIP ViT"),
        ("ViT-B-16-SigLIP", ValueError, "custom text tower"),
        ("roberta-ViT-B-32", ValueError, "not a plain CLIP ViT"),
    ],
)
def test_towers_that_do_not_fit_are_refused(name, error, match):
    with pytest.raises(error, match=match):
        build_clip(name)


@pytest.mark.parametrize("blocks", [(), (2, 1), (1, 1), (1, 4), (-1, 2)])
def test_feature_blocks_must_exist_and_ascend(blocks):
    with pytest.raises(ValueError, match="feature_blocks"):
        ClipBackbone("partseg-tiny-16", feature_blocks=blocks)
