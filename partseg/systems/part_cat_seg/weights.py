"""What PartCATSeg reads: the authors' checkpoints, and CAT-Seg's first version over COCO-Stuff as its start."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from partseg.backbones.clip_layouts import OPEN_CLIP
from partseg.systems.cat_seg.vit_guidance import DINO
from partseg.systems.cat_seg.weights import (
    CVPR24,
    PREDICTOR,
    TRANSFORMER,
    V1,
    aggregator_rules,
    clip_link,
    layer_rules,
    refused,
    shifted_masks,
    without_guidance,
)
from partseg.weights.layouts import Link, Rules, WeightLayout, rename

_OWN: Rules = (
    *aggregator_rules(),
    *layer_rules(r"aggregator\.pair_layers", "layers_specific_part"),
    (r"aggregator\.pair_embedding\.conv\.(weight|bias)", (f"{TRANSFORMER}conv2.{{0}}",)),
    (r"aggregator\.pair_projection\.(weight|bias)", (f"{TRANSFORMER}conv_proj_feat.{{0}}",)),
    (r"guidance\.net\.(.+)", ("backbone.dinov2.{0}",)),
    (r"background", (f"{PREDICTOR}non_object_embedding",)),
)
_clip = clip_link(f"{PREDICTOR}clip_model.", split=False)
_UNUSED_LAYERS = "layers_object"
"""Layers that the authors construct and never run."""


def _link(name: str) -> Link | None:
    theirs = rename(name, _OWN)
    return Link(name, theirs) if theirs else _clip(name)


def _start_pairs(model: nn.Module, found: Collection[str]) -> tuple[str, ...]:
    """Copy the shared layers into those of pairs where the file has the former only, and the model wants it."""
    own = ("aggregator.pair_embedding.", "aggregator.pair_layers.")
    pairs = tuple(name for name in model.state_dict() if name.startswith(own))
    aggregator: nn.Module = model.aggregator  # type: ignore[assignment]
    if "aggregator.embedding.conv.weight" not in found or any(name in found for name in pairs):
        return ()
    if not aggregator.shape.start_pairs_from_weights:  # type: ignore[union-attr]
        return ()
    aggregator.start_pairs()  # type: ignore[operator]
    return pairs


def _complete(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the window masks, and zeros for the layers and the token that the authors never run."""
    lists = ("layers", "layers_specific_part", _UNUSED_LAYERS)
    used = {name: t for name, t in state.items() if name.startswith(f"{TRANSFORMER}layers.")}
    for name, tensor in used.items():
        state[name.replace(".layers.", f".{_UNUSED_LAYERS}.", 1)] = torch.zeros_like(tensor)
    state["backbone.dinov2.mask_token"] = torch.zeros_like(state["backbone.dinov2.cls_token"][0])
    return shifted_masks(model, state, lists=lists)


AUTHORS = WeightLayout(
    name="part_cat_seg",
    marks=("backbone.dinov2.cls_token", f"{TRANSFORMER}conv2.weight"),
    link=_link,
    unused=rf".*\.attn_mask|.*\.{_UNUSED_LAYERS}\..*|backbone\.dinov2\.mask_token",
    quick_gelu=True,
    complete=_complete,
)
START = replace(without_guidance(V1), start=_start_pairs)
LAYOUTS = (AUTHORS, START, refused(CVPR24, instead_of=AUTHORS), OPEN_CLIP, DINO)
