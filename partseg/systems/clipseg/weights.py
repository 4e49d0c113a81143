"""The public CLIPSeg: transformers' CLIPSegForImageSegmentation, as in CIDAS/clipseg-rd64-refined."""

from __future__ import annotations

from partseg.backbones.clip_layouts import OPEN_CLIP, hf_clip
from partseg.weights.layouts import Link, WeightLayout, rename, under

_DECODER = (
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
_towers = under("backbone.clip.", hf_clip)


def link(name: str) -> Link | None:
    """transformers' names of one of our tensors."""
    theirs = rename(name, _DECODER)
    return Link(name, theirs) if theirs else _towers(name)


HF_CLIPSEG = WeightLayout(
    name="hf_clipseg",
    marks=("clip.text_model.", "decoder.film_mul.weight"),
    link=link,
    prefixes=("clipseg_model.",),
    unused=r".*\.position_ids|image_(mean|std)",
    quick_gelu=True,
)
LAYOUTS = (HF_CLIPSEG, OPEN_CLIP)
