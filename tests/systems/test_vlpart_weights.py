"""Names and shapes of the public VLPart files, the files it starts from, and Swin's padding."""

import hashlib
import json
import re

import open_clip
import pytest
import timm
import torch

from partseg.engine.build import build_model
from partseg.engine.checkpoint import init_from
from partseg.systems.vlpart.body import SwinBody
from partseg.systems.vlpart.text import TextTower
from partseg.utils.config import compose
from partseg.weights.load import export_weights, load_weights

PUBLIC = {"vlpart": ("vlpart", "## A."), "vlpart_swin_b": ("vlpart_cascade", "## C.")}
"""Our model, its layout, and the section of the list of public names."""


def names_and_shapes(name):
    """What a full-size model writes for the authors' code, one "name [shape]" per line; nothing is allocated."""
    with torch.device("meta"):
        model = build_model(compose("train", [f"experiment={name}_pascal_part_116"]))
        state = export_weights(model, PUBLIC[name][0])
    return sorted(f"{key} {list(value.shape)}" for key, value in state.items())


def digest(lines):
    return {"tensors": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


@pytest.mark.parametrize("name", PUBLIC)
def test_full_size_names_and_shapes_are_the_public_ones(name, root):
    """Against the digest of the public list, which the next test compares with the list itself."""
    pinned = json.loads((root / "tests/golden/vlpart_keys.json").read_text())
    assert digest(names_and_shapes(name)) == pinned[name]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_digests_are_those_of_the_public_list(name, samples, root):
    text = (samples.parent / "fixtures" / "vlpart" / "full_size_keys.txt").read_text()
    section = text[text.index(PUBLIC[name][1]) :].split("\n## ")[0].splitlines()[1:]
    # the text matrix of the training vocabulary is no weight: ours is made from the words
    lines = sorted(re.sub(r" \*$", "", line) for line in section if line and "zs_weight" not in line)
    assert digest(lines) == json.loads((root / "tests/golden/vlpart_keys.json").read_text())[name]


def test_start_weights_come_from_several_files(tmp_path):
    """The image body from timm's ResNet, the words from CLIP; what neither has is left as it was."""
    config = compose("train", ["experiment=toy_vlpart", "model.backbone.body.depths=[1,1,1,1]"])
    model = build_model(config)
    body = timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, (1, 1, 1, 1), channels=(16, 32, 64, 64))
    torch.save(body.state_dict(), tmp_path / "resnet.pt")
    other = TextTower("partseg-tiny-16")
    clip = {**other.clip.state_dict(), "visual.conv1.weight": torch.zeros(1), "logit_scale": torch.zeros(())}
    torch.save(clip, tmp_path / "clip.pt")
    rpn = model.rpn.head.conv[0][0].weight.clone()
    reports = [init_from(model, str(tmp_path / name)) for name in ("resnet.pt", "clip.pt")]
    assert torch.equal(model.backbone.body.net.layer3[0].conv2.weight, body.layer3[0].conv2.weight)
    assert torch.equal(model.text.clip.token_embedding.weight, other.clip.token_embedding.weight)
    assert torch.equal(model.rpn.head.conv[0][0].weight, rpn) and not any(report.unexpected for report in reports)


def test_matrices_of_a_training_vocabulary_are_left_out(tmp_path):
    """A released single-data-set file holds its text matrix, a joint one class frequencies: neither is a surprise."""
    model = build_model(compose("train", ["experiment=toy_vlpart"]))
    state = export_weights(model, "vlpart")
    state["roi_heads.box_predictor.cls_score.zs_weight"] = torch.zeros(128, 94)
    state["roi_heads.box_predictor.freq_weight_0"] = torch.zeros(1203)
    torch.save({"model": state}, tmp_path / "r50.pth")
    report = load_weights(model, str(tmp_path / "r50.pth"))
    assert report.layout == "vlpart" and not report.unexpected
    assert all(name.startswith("text.") for name in report.missing)


def test_the_text_tower_is_that_of_open_clip():
    tower = TextTower("partseg-tiny-16")
    prompts = ["a dog head", "a wheel of a car"]
    tokens = open_clip.tokenize(prompts)
    with torch.no_grad():
        torch.testing.assert_close(tower.encode_prompts(prompts), tower.clip(tokens), atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in tower.parameters())


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (64, 32), (224, 256)])
def test_swin_is_that_of_its_authors(size):
    """transformers' Swin is theirs at any size; timm's own pads after the shift and differs where it pads at all."""
    from transformers import SwinBackbone, SwinConfig

    torch.manual_seed(0)
    ours = SwinBody(width=24, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), drop_path=0.0).eval()
    config = SwinConfig(
        embed_dim=24,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    theirs = SwinBackbone(config).eval()
    copy_swin(ours, theirs)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = theirs(images).feature_maps
        for found, wanted in zip(ours(images), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


SWIN_NAMES = {
    "net.patch_embed.proj": "swin.embeddings.patch_embeddings.projection",
    "net.patch_embed.norm": "swin.embeddings.norm",
    "net.layers": "swin.encoder.layers",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
}


@torch.no_grad()
def copy_swin(ours, theirs):
    """Our random weights into transformers' Swin."""
    state = {name: value + 0.05 * torch.randn_like(value) for name, value in ours.state_dict().items()}
    ours.load_state_dict(state)
    known = theirs.state_dict()
    if not any(".q_proj." in name for name in known):
        pytest.skip("transformers before 5 calls Swin's tensors otherwise")
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^norms\.(\d)", lambda m: f"hidden_states_norms.stage{int(m[1]) + 1}", name)
        name = re.sub(
            r"^net\.layers\.(\d)\.downsample", lambda m: f"swin.encoder.layers.{int(m[1]) - 1}.downsample", name
        )
        for own, other in SWIN_NAMES.items():
            name = name.replace(own, other)
        if "attn.qkv" in name:
            for part, piece in zip("qkv", value.chunk(3)):
                renamed[name.replace("attn.qkv", f"attention.{part}_proj")] = piece
        else:
            renamed[name] = value
    missing, unexpected = theirs.load_state_dict(renamed, strict=False)
    assert not unexpected and set(missing) == {"swin.layernorm.weight", "swin.layernorm.bias"}


if __name__ == "__main__":  # rewrites the digests; the test against the public list says whether they are right
    from pathlib import Path

    content = {name: digest(names_and_shapes(name)) for name in PUBLIC}
    (Path(__file__).parents[1] / "golden" / "vlpart_keys.json").write_text(json.dumps(content, indent=1) + "\n")
