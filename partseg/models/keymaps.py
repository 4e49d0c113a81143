"""Names of the same tensors in our models and in public checkpoints, and the two reshapes between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["hf_clipseg", "part_clipseg", "open_clip", "partseg"]
"""hf_clipseg: transformers' CLIPSeg; part_clipseg: the authors' checkpoints; open_clip: CLIP alone; partseg: ours."""

_BLOCK = (
    (r"attn\.in_proj_(weight|bias)", ("self_attn.q_proj.{0}", "self_attn.k_proj.{0}", "self_attn.v_proj.{0}")),
    (r"attn\.out_proj\.(weight|bias)", ("self_attn.out_proj.{0}",)),
    (r"ln_([12])\.(weight|bias)", ("layer_norm{0}.{1}",)),
    (r"mlp\.c_fc\.(weight|bias)", ("mlp.fc1.{0}",)),
    (r"mlp\.c_proj\.(weight|bias)", ("mlp.fc2.{0}",)),
)
_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"backbone\.clip\.logit_scale", ("clip.logit_scale",)),
    (r"backbone\.clip\.token_embedding\.weight", ("clip.text_model.embeddings.token_embedding.weight",)),
    (r"backbone\.clip\.positional_embedding", ("clip.text_model.embeddings.position_embedding.weight",)),
    (r"backbone\.clip\.ln_final\.(weight|bias)", ("clip.text_model.final_layer_norm.{0}",)),
    (r"backbone\.clip\.text_projection", ("clip.text_projection.weight",)),
    (r"backbone\.clip\.visual\.class_embedding", ("clip.vision_model.embeddings.class_embedding",)),
    (r"backbone\.clip\.visual\.conv1\.weight", ("clip.vision_model.embeddings.patch_embedding.weight",)),
    (r"backbone\.clip\.visual\.positional_embedding", ("clip.vision_model.embeddings.position_embedding.weight",)),
    (r"backbone\.clip\.visual\.ln_pre\.(weight|bias)", ("clip.vision_model.pre_layrnorm.{0}",)),
    (r"backbone\.clip\.visual\.ln_post\.(weight|bias)", ("clip.vision_model.post_layernorm.{0}",)),
    (r"backbone\.clip\.visual\.proj", ("clip.visual_projection.weight",)),
    (r"decoder\.reduces\.(\d+)\.(weight|bias)", ("decoder.reduces.{0}.{1}",)),
    (r"decoder\.film\.(mul|add)\.(weight|bias)", ("decoder.film_{0}.{1}",)),
    (r"decoder\.head\.conv\.(weight|bias)", ("decoder.transposed_convolution.0.{0}",)),
    (r"decoder\.head\.up1\.(weight|bias)", ("decoder.transposed_convolution.2.{0}",)),
    (r"decoder\.head\.up2\.(weight|bias)", ("decoder.transposed_convolution.4.{0}",)),
    (
        r"decoder\.layers\.(\d+)\.qkv\.(weight|bias)",
        tuple(f"decoder.layers.{{0}}.self_attn.{x}_proj.{{1}}" for x in "qkv"),
    ),
    (r"decoder\.layers\.(\d+)\.out\.(weight|bias)", ("decoder.layers.{0}.self_attn.out_proj.{1}",)),
    (r"decoder\.layers\.(\d+)\.norm([12])\.(weight|bias)", ("decoder.layers.{0}.layer_norm{1}.{2}",)),
    (r"decoder\.layers\.(\d+)\.mlp\.fc([12])\.(weight|bias)", ("decoder.layers.{0}.mlp.fc{1}.{2}",)),
)
_AUTHORS: tuple[tuple[str, tuple[str, ...]], ...] = (
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
_TOWERS = (
    (r"backbone\.clip\.visual\.transformer\.resblocks\.(\d+)\.(.+)", "clip.vision_model.encoder.layers.{0}."),
    (r"backbone\.clip\.transformer\.resblocks\.(\d+)\.(.+)", "clip.text_model.encoder.layers.{0}."),
)
_TRANSPOSED = frozenset({"backbone.clip.visual.proj", "backbone.clip.text_projection"})

KNOWN_UNUSED = re.compile(r".*\.position_ids|text_adapter\..*|tunable_linear\.weight|image_(mean|std)")
"""Tensors of public checkpoints that take part in no output: index buffers, and two layers the authors keep unused."""


@dataclass(frozen=True)
class Link:
    """Our tensor `ours` is `theirs` stacked along rows (q, k, v), transposed if asked."""

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        """Our tensor out of their state."""
        parts = [state[name] for name in self.theirs]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        return tensor.t() if self.transposed else tensor

    def write(self, tensor: Tensor) -> dict[str, Tensor]:
        """Their tensors out of ours, each with its own memory."""
        tensor = tensor.detach().t() if self.transposed else tensor.detach()
        parts = tensor.chunk(len(self.theirs)) if len(self.theirs) > 1 else (tensor,)
        return {name: part.clone(memory_format=torch.contiguous_format) for name, part in zip(self.theirs, parts)}


def links(names: Iterable[str], layout: Layout) -> list[Link]:
    """A link for each of our tensor names that has a counterpart in `layout`."""
    found = (_link(name, layout) for name in names)
    return [link for link in found if link is not None]


def _link(name: str, layout: Layout) -> Link | None:
    if layout == "partseg":
        return Link(name, (name,))
    if layout == "open_clip":
        prefix = "backbone.clip."
        return Link(name, (name[len(prefix) :],)) if name.startswith(prefix) else None
    for tower, head in _TOWERS:
        if match := re.fullmatch(tower, name):
            theirs = _rename(match[2], _BLOCK)
            return Link(name, tuple(head.format(match[1]) + t for t in theirs)) if theirs else None
    theirs = _rename(name, _RULES + (_AUTHORS if layout == "part_clipseg" else ()))
    return Link(name, theirs, transposed=name in _TRANSPOSED) if theirs else None


def _rename(name: str, rules: tuple[tuple[str, tuple[str, ...]], ...]) -> tuple[str, ...]:
    for pattern, theirs in rules:
        if match := re.fullmatch(pattern, name):
            return tuple(t.format(*match.groups()) for t in theirs)
    return ()
