"""The authors' checkpoints (state_dict of a DistributedDataParallel model), and CLIP's own as a start."""

from __future__ import annotations

from partseg.backbones.clip_layouts import OPEN_CLIP
from partseg.weights.layouts import Link, WeightLayout, rename

_NECK = {
    "text": "txt_proj",
    "image3": "f3_v_proj",
    "image4": "f2_v_proj",
    "image5": "f1_v_proj",
    "merge4": "f2_cat",
    "merge3": "f3_cat",
    "out5": "f4_proj5",
    "out4": "f4_proj4",
    "out3": "f4_proj3",
    "join": "aggr",
    "place": "coordconv.0.conv1",
    "last": "coordconv.1",
}
_LAYER = {
    "norm_self": "norm1",
    "norm_cross": "norm2",
    "norm_mlp": "norm3",
    "attend_self": "self_attn",
    "attend_words": "multihead_attn",
    "after_self": "self_attn_norm",
    "after_words": "cross_attn_norm",
    "fc1": "ffn.0",
    "norm_hidden": "ffn.3",
    "fc2": "ffn.4",
}
_RULES = (
    (r"backbone\.clip\.(.+)", ("backbone.{0}",)),
    (r"backbone\.connect\.(.+)", ("backbone.visual.attnpool.connect.{0}",)),
    (r"neck\.norm\.(.+)", ("neck.norm_layer.0.{0}",)),
    *((rf"neck\.{ours}\.(.+)", (f"neck.{theirs}.{{0}}",)) for ours, theirs in _NECK.items()),
    *(
        (rf"decoder\.layers\.(\d+)\.{ours}\.(.+)", (f"decoder.layers.{{0}}.{theirs}.{{1}}",))
        for ours, theirs in _LAYER.items()
    ),
    (r"decoder\.norm\.(.+)", ("decoder.norm.{0}",)),
    (r"projector\.image1\.(.+)", ("proj.vis.1.{0}",)),
    (r"projector\.image2\.(.+)", ("proj.vis.3.{0}",)),
    (r"projector\.image3\.(.+)", ("proj.vis.4.{0}",)),
    (r"projector\.text\.(.+)", ("proj.txt.{0}",)),
)


def link(name: str) -> Link | None:
    """The authors' name of one of our tensors."""
    theirs = rename(name, _RULES)
    return Link(name, theirs) if theirs else None


OFFICIAL = WeightLayout(name="cris", marks=("neck.txt_proj.0.weight", "proj.txt.weight"), link=link, quick_gelu=True)
LAYOUTS = (OFFICIAL, OPEN_CLIP)
