"""The authors' CAT-Seg networks at a tiny size: our networks of the same shape, with their weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.layers import freeze_batch_norm_2d
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from partseg.systems.cat_seg.aggregator import AggregatorShape
from partseg.systems.cat_seg.dense_clip import DenseClip
from partseg.systems.cat_seg.guidance import ConvGuidance, FromClip
from partseg.systems.cat_seg.inference import Inference
from partseg.systems.cat_seg.network import CatSeg
from partseg.vocabulary.names import Vocabulary
from partseg.weights.load import load_weights

TOKENS = "sem_seg_head.predictor.clip_model.token_embedding.weight"
SHAPE = {"hidden": 16, "text": 20, "appearance": 28, "decoder": (32, 16), "decoder_guidance": (10, 6)}
OFFICIAL = Inference(pad_to=32, probabilities=True)
QV = ("backbone.clip.*.attn.parametrizations.in_proj_weight.original[02]",)


class _Narrow(Bottleneck):
    expansion = 2


class _NarrowResNet(nn.Module):
    """A ResNet-50 without its last stage, as narrow as the fixture's."""

    def __init__(self):
        super().__init__()
        net = freeze_batch_norm_2d(ResNet(_Narrow, (3, 4, 6), channels=(4, 8, 16)))
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 7, stride=2, padding=3, bias=False), FrozenBatchNorm2d(6)
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3
        first = self.layer1[0]
        first.conv1, first.downsample[0] = nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(6, 8, 1, bias=False)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        fine = self.layer1(x)
        middle = self.layer2(fine)
        return fine, middle, self.layer3(middle)


def narrow_guidance():
    """Guidance as `model.guidance` builds it, around the narrow network."""
    guidance = ConvGuidance("test_resnet")
    guidance.net, guidance.appearance_dim, guidance.decoder_dims = _NarrowResNet(), 32, (16, 8)
    return guidance


def clip_config(folder: Path, clip: dict) -> str:
    """A file with the fixture's CLIP, which keeps CLIP's whole token table."""
    path = folder / "clip.json"
    side = clip["patch"] * clip["native_grid"]
    head = clip["vision_width"] // clip["vision_heads"]
    vision = {"image_size": side, "patch_size": clip["patch"], "width": clip["vision_width"], "head_width": head}
    text = {"context_length": 77, "vocab_size": 49408, "width": clip["text_width"], "heads": clip["text_heads"]}
    content = {
        "embed_dim": clip["embed_dim"],
        "quick_gelu": True,
        "vision_cfg": {**vision, "layers": clip["vision_layers"]},
        "text_cfg": {**text, "layers": clip["text_layers"]},
    }
    path.write_text(json.dumps(content))
    return str(path)


def whole_tokens(state: dict, meta: dict) -> dict:
    """The weights with the few rows of the token table at their places in CLIP's."""
    rows = state[TOKENS]
    table = torch.zeros(49408, rows.shape[1])
    table[meta["prompts"]["vocab_bpe_ids"]] = rows
    return {**state, TOKENS: table}


def build(folder: Path, tmp_path: Path, *, v1: bool, **options) -> tuple[CatSeg, dict]:
    """Our network with the fixture's weights, and its meta.json."""
    meta = json.loads((folder / "meta.json").read_text())
    name = clip_config(tmp_path, meta["config"]["clip"])
    own = {"inference": OFFICIAL, **options}
    if v1:
        shape = AggregatorShape(prompts=80, **SHAPE)
        trainable = ["guidance.*", "aggregator.*"]
        own = {"background": "learned", "guidance": narrow_guidance(), **own}
        model = CatSeg(DenseClip(name), aggregator=shape, trainable=trainable, **own)
    else:
        shape = AggregatorShape(prompts=1, **{**SHAPE, "padding": 256, **own.pop("shape", {})})
        backbone = DenseClip(name, guidance_blocks=(3, 7), residual="cls", split_attention=True)
        trainable = ["guidance.*", "aggregator.*", *QV]
        template = "A photo of a {} in the scene"
        own = {"background": "none", "guidance": FromClip((14, 10)), "template": template, **own}
        model = CatSeg(backbone, aggregator=shape, trainable=trainable, **own)
    path = tmp_path / "authors.safetensors"
    save_file(whole_tokens(load_file(folder / "state_dict.safetensors"), meta), path)
    report = load_weights(model, str(path))
    assert not report.missing and not report.unexpected, report.table()
    return model, meta


def vocabulary_of(names: list[str]) -> Vocabulary:
    """ "dog's head" and so on, in this order."""
    return Vocabulary(tuple((name.split("'s ")[0], name.split("'s ")[1]) for name in names))
