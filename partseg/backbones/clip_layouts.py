"""Names of CLIP's tensors in public checkpoints: open_clip's, and transformers' (under `clip.`, if built on)."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from partseg.weights.layouts import Link, WeightLayout, rename, under

_BLOCK = (
    (r"attn\.in_proj_(weight|bias)", ("self_attn.q_proj.{0}", "self_attn.k_proj.{0}", "self_attn.v_proj.{0}")),
    (r"attn\.out_proj\.(weight|bias)", ("self_attn.out_proj.{0}",)),
    (r"ln_([12])\.(weight|bias)", ("layer_norm{0}.{1}",)),
    (r"mlp\.c_fc\.(weight|bias)", ("mlp.fc1.{0}",)),
    (r"mlp\.c_proj\.(weight|bias)", ("mlp.fc2.{0}",)),
)
_OUTSIDE_BLOCKS = (
    (r"logit_scale", ("clip.logit_scale",)),
    (r"token_embedding\.weight", ("clip.text_model.embeddings.token_embedding.weight",)),
    (r"positional_embedding", ("clip.text_model.embeddings.position_embedding.weight",)),
    (r"ln_final\.(weight|bias)", ("clip.text_model.final_layer_norm.{0}",)),
    (r"text_projection", ("clip.text_projection.weight",)),
    (r"visual\.class_embedding", ("clip.vision_model.embeddings.class_embedding",)),
    (r"visual\.conv1\.weight", ("clip.vision_model.embeddings.patch_embedding.weight",)),
    (r"visual\.positional_embedding", ("clip.vision_model.embeddings.position_embedding.weight",)),
    (r"visual\.ln_pre\.(weight|bias)", ("clip.vision_model.pre_layrnorm.{0}",)),
    (r"visual\.ln_post\.(weight|bias)", ("clip.vision_model.post_layernorm.{0}",)),
    (r"visual\.proj", ("clip.visual_projection.weight",)),
)
_TOWERS = (
    (r"visual\.transformer\.resblocks\.(\d+)\.(.+)", "clip.vision_model.encoder.layers.{0}."),
    (r"transformer\.resblocks\.(\d+)\.(.+)", "clip.text_model.encoder.layers.{0}."),
)
_TRANSPOSED = frozenset({"visual.proj", "text_projection"})
IMAGE_POSITION = "visual.positional_embedding"


def hf_clip(name: str) -> Link | None:
    """transformers' names of an open_clip tensor."""
    fit = fit_position if name == IMAGE_POSITION else None
    for tower, head in _TOWERS:
        if match := re.fullmatch(tower, name):
            theirs = rename(match[2], _BLOCK)
            return Link(name, tuple(head.format(match[1]) + t for t in theirs)) if theirs else None
    theirs = rename(name, _OUTSIDE_BLOCKS)
    return Link(name, theirs, transposed=name in _TRANSPOSED, fit=fit) if theirs else None


def own_clip(name: str) -> Link:
    """open_clip's own names."""
    return Link(name, (name,), fit=fit_position if name == IMAGE_POSITION else None)


OPEN_CLIP = WeightLayout(
    name="open_clip", marks=("visual.conv1.weight", "token_embedding.weight"), link=under("backbone.clip.", own_clip)
)
"""CLIP alone: open_clip's and OpenAI's files."""

HF_CLIP = WeightLayout(
    name="hf_clip", marks=("clip.text_model.",), link=under("backbone.clip.", hf_clip), unused=r".*", quick_gelu=True
)
"""The CLIP inside a file of transformers; what is built on it is left out."""


def fit_position(table: Tensor, shape: torch.Size) -> Tensor | None:
    """An image position table of another square grid resampled, its CLS row kept; None where it is of another width."""
    if table.shape[1:] != shape[1:]:
        return None
    there, here = (round((length - 1) ** 0.5) for length in (len(table), shape[0]))
    if there * there != len(table) - 1 or here * here != shape[0] - 1:
        return None
    return resize_position(table, stored=(there, there), grid=(here, here))


def resize_position(position: Tensor, *, stored: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Position embedding [1 + S, C] of `stored` cells resampled to [1 + T, C] of `grid`, CLS row kept.

    Bicubic, align_corners false, no antialias: CLIPSeg's way, not open_clip's.
    """
    if tuple(stored) == tuple(grid):
        return position
    cells = position[1:].reshape(1, *stored, -1).permute(0, 3, 1, 2)
    cells = F.interpolate(cells.float(), size=grid, mode="bicubic", align_corners=False).to(position.dtype)
    return torch.cat([position[:1], cells.flatten(2).transpose(1, 2)[0]])
