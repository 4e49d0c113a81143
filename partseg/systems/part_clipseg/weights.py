"""What PartCLIPSeg reads: the authors' checkpoints, the public CLIPSeg as its start, CLIP alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from partseg.backbones.clip_layouts import OPEN_CLIP
from partseg.systems.clipseg.weights import HF_CLIPSEG
from partseg.systems.clipseg.weights import link as clipseg_link
from partseg.weights.layouts import Link, WeightLayout, rename

_OWN = (
    (r"background", ("non_object_embedding",)),
    (r"adapter\.down\.weight", ("visual_adapter.fc.0.weight",)),
    (r"adapter\.up\.weight", ("visual_adapter.fc.2.weight",)),
    (r"pair\.film\.(mul|add)\.(weight|bias)", ("decoder.cond_film_{0}.{1}",)),
    (r"pair\.head\.conv\.(weight|bias)", ("decoder.part_obj_with_cond_embed.0.{0}",)),
    (r"pair\.head\.up1\.(weight|bias)", ("decoder.part_obj_with_cond_embed.2.{0}",)),
    (r"pair\.head\.up2\.(weight|bias)", ("decoder.part_obj_with_cond_embed.4.{0}",)),
    (r"pair\.project\.(weight|bias)", ("decoder.part_obj_mlp.0.{0}",)),
    (r"pair\.text\.(weight|bias)", ("decoder.reduce_cond_embed.{0}",)),
)


def _link(name: str) -> Link | None:
    theirs = rename(name, _OWN)
    return Link(name, theirs) if theirs else clipseg_link(name)


def _start_pair(model: nn.Module, found: Collection[str]) -> tuple[str, ...]:
    """Copy the decoder's FiLM and head into the pair's when the file has the former and not the latter."""
    pair = tuple(n for n in model.state_dict() if n.startswith(("pair.film.", "pair.head.")))
    if any(n in found for n in pair) or not any(n.startswith("decoder.head.") for n in found):
        return ()
    model.start_pair_from_decoder()  # type: ignore[operator]
    return pair


def _complete(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the index buffers and the two unused layers that the authors' files contain, the latter as zeros."""
    text_dim = state["non_object_embedding"].shape[1]
    for tower in ("text_model", "vision_model"):
        count = len(state[f"clip.{tower}.embeddings.position_embedding.weight"])
        state[f"clip.{tower}.embeddings.position_ids"] = torch.arange(count).unsqueeze(0)
    state["text_adapter.fc.0.weight"] = torch.zeros(text_dim // 4, text_dim)
    state["text_adapter.fc.2.weight"] = torch.zeros(text_dim, text_dim // 4)
    state["tunable_linear.weight"] = torch.zeros(1000, text_dim)
    return state


AUTHORS = WeightLayout(
    name="part_clipseg",
    marks=("decoder.part_obj_mlp.0.weight",),
    link=_link,
    prefixes=("partclipseg_model.",),
    unused=r".*\.position_ids|text_adapter\..*|tunable_linear\.weight|image_(mean|std)",
    quick_gelu=True,
    complete=_complete,
)
LAYOUTS = (AUTHORS, replace(HF_CLIPSEG, start=_start_pair), OPEN_CLIP)
