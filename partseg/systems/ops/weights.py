"""What OPS reads: files with detectron2's names of Mask2Former, and ImageNet weights for the backbone.

No checkpoint of OPS is public. Its code names tensors as Mask2Former's does.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from partseg.weights.layouts import Link, WeightLayout, rename

Stem = Literal["rgb", "random"]
STEM = "backbone.embedder.embedder.convolution.weight"

_NORM = r"normalization\.(weight|bias|running_mean|running_var)"
_LAYER = r"backbone\.encoder\.stages\.(\d)\.layers\.(\d+)\."
_PIXEL = "sem_seg_head.pixel_decoder."
_ENCODER = r"pixel_decoder\.encoder\.layers\.(\d+)\."
_QUERY = r"decoder\.decoder\.layers\.(\d+)\."
_PREDICTOR = "sem_seg_head.predictor."
_DETECTRON2 = (
    (_ENCODER + r"self_attn\.(.*)", (_PIXEL + "transformer.encoder.layers.{0}.self_attn.{1}",)),
    (_ENCODER + r"self_attn_layer_norm\.(.*)", (_PIXEL + "transformer.encoder.layers.{0}.norm1.{1}",)),
    (_ENCODER + r"final_layer_norm\.(.*)", (_PIXEL + "transformer.encoder.layers.{0}.norm2.{1}",)),
    (_ENCODER + r"fc([12])\.(.*)", (_PIXEL + "transformer.encoder.layers.{0}.linear{1}.{2}",)),
    (r"pixel_decoder\.level_embed", (_PIXEL + "transformer.level_embed",)),
    (r"pixel_decoder\.input_projections\.(.*)", (_PIXEL + "input_proj.{0}",)),
    (r"pixel_decoder\.mask_projection\.(.*)", (_PIXEL + "mask_features.{0}",)),
    (r"pixel_decoder\.(adapter|layer)_1\.0\.weight", (_PIXEL + "{0}_1.weight",)),
    (r"pixel_decoder\.(adapter|layer)_1\.1\.(.*)", (_PIXEL + "{0}_1.norm.{1}",)),
    (
        _QUERY + r"self_attn\.out_proj\.(.*)",
        (_PREDICTOR + "transformer_self_attention_layers.{0}.self_attn.out_proj.{1}",),
    ),
    (_QUERY + r"self_attn_layer_norm\.(.*)", (_PREDICTOR + "transformer_self_attention_layers.{0}.norm.{1}",)),
    (_QUERY + r"cross_attn\.(.*)", (_PREDICTOR + "transformer_cross_attention_layers.{0}.multihead_attn.{1}",)),
    (_QUERY + r"cross_attn_layer_norm\.(.*)", (_PREDICTOR + "transformer_cross_attention_layers.{0}.norm.{1}",)),
    (_QUERY + r"fc([12])\.(.*)", (_PREDICTOR + "transformer_ffn_layers.{0}.linear{1}.{2}",)),
    (_QUERY + r"final_layer_norm\.(.*)", (_PREDICTOR + "transformer_ffn_layers.{0}.norm.{1}",)),
    (r"decoder\.decoder\.layernorm\.(.*)", (_PREDICTOR + "decoder_norm.{0}",)),
    (r"decoder\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(.*)", (_PREDICTOR + "mask_embed.layers.{0}.{1}",)),
    (r"decoder\.queries_features\.weight", (_PREDICTOR + "query_feat.weight",)),
    (r"decoder\.queries_embedder\.weight", (_PREDICTOR + "query_embed.weight",)),
    (r"decoder\.level_embed\.weight", (_PREDICTOR + "level_embed.weight",)),
    (r"decoder\.input_projections\.(.*)", (_PREDICTOR + "input_proj.{0}",)),
    (r"class_head\.(.*)", (_PREDICTOR + "class_embed.{0}",)),
)
_QKV = ((_QUERY + r"self_attn\.([qkv])_proj\.(weight|bias)", ("{0}", "{1}", "{2}")),)


def _with_stem(name: str, theirs: tuple[str, ...], stem: Stem) -> Link | None:
    """The link of a tensor, with what becomes of a first convolution of three channels."""
    if not theirs:
        return None
    return Link(name, theirs, fit=partial(_four_channels, stem=stem) if name == STEM else None)


def _four_channels(value: Tensor, shape: torch.Size, *, stem: Stem) -> Tensor | None:
    """RGB's weights and zeros for the object's channel: the network starts as the one that knew no objects.

    The authors' loader drops such a tensor for its shape, which leaves the random one that detectron2 starts with.
    """
    if value.shape[1] != 3 or shape[1] != 4 or (value.shape[0], *value.shape[2:]) != (shape[0], *shape[2:]):
        return None
    if stem == "random":
        return nn.init.kaiming_normal_(torch.empty(shape), mode="fan_out", nonlinearity="relu")
    return torch.cat([value, torch.zeros_like(value[:, :1])], dim=1)


def _detectron2(name: str, *, stem: Stem) -> Link | None:
    if found := rename(name, _QKV):
        layer, which, kind = found
        fused = f"{_PREDICTOR}transformer_self_attention_layers.{layer}.self_attn.in_proj_{kind}"
        return Link(name, (fused,), block=("qkv".index(which), 3))
    theirs = _backbone(name, first="backbone.stem.conv1", stage="backbone.res{}", offset=2) or rename(name, _DETECTRON2)
    return _with_stem(name, theirs, stem)


def _torchvision(name: str, *, stem: Stem) -> Link | None:
    theirs = _backbone(name, first="conv1", stage="layer{}", offset=1)
    norms = {"conv1.norm": "bn1", ".conv1.norm": ".bn1", ".conv2.norm": ".bn2", ".conv3.norm": ".bn3"}
    shortcuts = {".shortcut.norm": ".downsample.1", ".shortcut.weight": ".downsample.0.weight"}
    for old, new in (norms | shortcuts).items():
        theirs = tuple(each.replace(old, new) for each in theirs)
    return _with_stem(name, theirs, stem)


def _backbone(name: str, *, first: str, stage: str, offset: int) -> tuple[str, ...]:
    """Names of the ResNet, in detectron2's way of naming what is inside a block; () for other modules."""
    if found := rename(name, ((r"backbone\.embedder\.embedder\." + _NORM, ("{0}",)),)):
        return (f"{first}.norm.{found[0]}",)
    if name == STEM:
        return (f"{first}.weight",)
    kinds = (
        (_LAYER + r"layer\.(\d)\.convolution\.weight", ("{0}", "{1}", "conv", "{2}", "weight")),
        (_LAYER + r"layer\.(\d)\." + _NORM, ("{0}", "{1}", "conv", "{2}", "norm.{3}")),
        (_LAYER + r"shortcut\.convolution\.weight", ("{0}", "{1}", "shortcut", "", "weight")),
        (_LAYER + r"shortcut\." + _NORM, ("{0}", "{1}", "shortcut", "", "norm.{2}")),
    )
    if not (found := rename(name, kinds)):
        return ()
    number, block, kind, place, rest = found
    what = kind if kind == "shortcut" else f"conv{int(place) + 1}"
    return (f"{stage.format(int(number) + offset)}.{block}.{what}.{rest}",)


def layouts(stem: Stem) -> tuple[WeightLayout, ...]:
    """`stem`: a first convolution of three channels gets a fourth of zeros (rgb), or is drawn anew (random)."""
    return (
        WeightLayout(
            name="mask2former_detectron2",
            marks=("sem_seg_head.predictor.query_feat.weight", "backbone.res2."),
            link=partial(_detectron2, stem=stem),
            unused=r"criterion\.empty_weight|pixel_(mean|std)",
        ),
        WeightLayout(
            name="torchvision_resnet",
            marks=("layer1.0.conv1.weight", "layer4.", "bn1.running_mean"),
            link=partial(_torchvision, stem=stem),
            unused=r"fc\.(weight|bias)|.*\.num_batches_tracked",
        ),
    )
