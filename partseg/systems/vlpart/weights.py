"""Public weights: VLPart's own files, and the ImageNet and CLIP files that it starts from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from partseg.weights.layouts import Link, WeightLayout, rename

_FPN = (
    *((rf"backbone\.fpn\.inner_blocks\.{i}\.0\.(.+)", (f"backbone.fpn_lateral{i + 2}.{{0}}",)) for i in range(4)),
    *((rf"backbone\.fpn\.layer_blocks\.{i}\.0\.(.+)", (f"backbone.fpn_output{i + 2}.{{0}}",)) for i in range(4)),
)
_SWIN = (
    # timm has the downsampling at the beginning of a stage, Swin's authors at the end of the one before
    *(
        (rf"backbone\.body\.net\.layers\.{i + 1}\.(downsample\..+)", (f"backbone.bottom_up.layers.{i}.{{0}}",))
        for i in range(3)
    ),
    (r"backbone\.body\.net\.(layers\..+|patch_embed\..+)", ("backbone.bottom_up.{0}",)),
    (r"backbone\.body\.norms\.(\d)\.(.+)", ("backbone.bottom_up.norm{0}.{1}",)),
)
_HEADS = (
    (r"rpn\.head\.conv\.0\.0\.(.+)", ("proposal_generator.rpn_head.conv.{0}",)),
    (r"rpn\.head\.cls_logits\.(.+)", ("proposal_generator.rpn_head.objectness_logits.{0}",)),
    (r"rpn\.head\.bbox_pred\.(.+)", ("proposal_generator.rpn_head.anchor_deltas.{0}",)),
    *((rf"heads\.mask\.{i}\.0\.(.+)", (f"roi_heads.mask_head.mask_fcn{i + 1}.{{0}}",)) for i in range(8)),
    (r"heads\.mask_logits\.conv5_mask\.(.+)", ("roi_heads.mask_head.deconv.{0}",)),
    (r"heads\.mask_logits\.mask_fcn_logits\.(.+)", ("roi_heads.mask_head.predictor.{0}",)),
)


def _stages(number: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Rules of the box stages; a file of one stage does not number it."""
    return (
        (r"heads\.stages\.(\d)\.fc\.fc6\.(.+)", (f"roi_heads.box_head.{number}fc1.{{1}}",)),
        (r"heads\.stages\.(\d)\.fc\.fc7\.(.+)", (f"roi_heads.box_head.{number}fc2.{{1}}",)),
        (r"heads\.stages\.(\d)\.embed\.(.+)", (f"roi_heads.box_predictor.{number}cls_score.linear.{{1}}",)),
        (r"heads\.stages\.(\d)\.offsets\.(\d)\.(.+)", (f"roi_heads.box_predictor.{number}bbox_pred.{{1}}.{{2}}",)),
    )


_RESNET = ((r"backbone\.body\.net\.(.+)", ("backbone.bottom_up.base.{0}",)),)
_ONE_STAGE = (*_FPN, *_HEADS, *_stages(""))
_CASCADE = (*_FPN, *_HEADS, *_stages("{0}."))


def _one_stage(name: str) -> Link | None:
    theirs = rename(name, (*_ONE_STAGE, *_RESNET))
    later = name.startswith("heads.stages.") and not name.startswith("heads.stages.0.")
    return Link(name, theirs) if theirs and not later else None


def _cascade(name: str) -> Link | None:
    body = _SWIN if ".body.net.layers." in name or ".patch_embed." in name or ".norms." in name else _RESNET
    theirs = rename(name, (*_CASCADE, *body))
    return Link(name, theirs) if theirs else None


def _imagenet(name: str) -> Link | None:
    theirs = rename(name, ((r"backbone\.body\.net\.(.+)", ("{0}",)),))
    return Link(name, theirs) if theirs else None


def _clip(name: str) -> Link | None:
    theirs = rename(name, ((r"text\.clip\.(.+)", ("{0}",)),))
    return Link(name, theirs) if theirs else None


def _with_constants(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Beside our tensors: counters of frozen norms, and the table of positions in a window."""
    found = dict(state)
    for name in state:
        if name.endswith(".running_mean"):
            found[name.replace("running_mean", "num_batches_tracked")] = torch.zeros((), dtype=torch.int64)
    for name, buffer in model.named_buffers():
        if name.endswith(".relative_position_index"):
            found[name.replace("backbone.body.net.", "backbone.bottom_up.")] = buffer.clone()
    return found


_UNUSED = (
    r".*\.(num_batches_tracked|relative_position_index|zs_weight|freq_weight_\d|attn_mask)|pixel_(mean|std)"
    r"|(fc|head|norm)\..*"
)
"""Beside counters and tables: the text matrices and class frequencies of the training vocabulary."""

VLPART = WeightLayout(
    "vlpart", ("roi_heads.box_head.fc1.weight",), _one_stage, unused=_UNUSED, complete=_with_constants
)
VLPART_CASCADE = WeightLayout(
    "vlpart_cascade", ("roi_heads.box_head.0.fc1.weight",), _cascade, unused=_UNUSED, complete=_with_constants
)
TIMM_RESNET = WeightLayout("timm_resnet", ("conv1.weight", "layer1.0.conv1.weight"), _imagenet, unused=_UNUSED)
TIMM_SWIN = WeightLayout("timm_swin", ("patch_embed.proj.weight", "layers.0.blocks."), _imagenet, unused=_UNUSED)
CLIP_TEXT = WeightLayout(
    "clip_text",
    ("token_embedding.weight", "text_projection"),
    _clip,
    unused=r"visual\..*|logit_scale|attn_mask",
    holds=("text",),
)
LAYOUTS = (VLPART, VLPART_CASCADE, TIMM_RESNET, TIMM_SWIN, CLIP_TEXT)
