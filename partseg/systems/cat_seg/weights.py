"""Public CAT-Seg checkpoints: v1 over COCO-Stuff (start weights) and over parts (OV-PARTS), and the CVPR 2024 ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor, nn

from partseg.backbones.clip_layouts import IMAGE_POSITION, OPEN_CLIP, fit_position
from partseg.systems.cat_seg.spatial import shift_mask
from partseg.systems.cat_seg.vit_guidance import DINO
from partseg.weights.layouts import Link, Rules, WeightLayout, rename

PREDICTOR = "sem_seg_head.predictor."
TRANSFORMER = f"{PREDICTOR}transformer."
_OURS_CLIP, _THEIRS_CLIP = "backbone.clip.", f"{PREDICTOR}clip_model."
_GUIDED = r"guidance\.|aggregator\.(appearance|decoder_guidance)\."
_TENSOR = r"\.(weight|bias)"
_NORM = r"\.(weight|bias|running_mean|running_var)"


def layer_rules(ours: str, theirs: str) -> Rules:
    """The authors' names of a list of aggregation layers that we hold as `ours` (a pattern) and they as `theirs`."""
    layer, swin = rf"{ours}\.(\d+)", f"{TRANSFORMER}{theirs}.{{0}}.swin_block."
    classes = f"{TRANSFORMER}{theirs}.{{0}}.attention."
    rules = [
        (rf"{layer}\.spatial\.guidance_norm{_TENSOR}", (f"{swin}guidance_norm.{{1}}",)),
        (rf"{layer}\.classes\.attention\.([qkv]){_TENSOR}", (f"{classes}attention.{{1}}.{{2}}",)),
        (rf"{layer}\.classes\.norm([12]){_TENSOR}", (f"{classes}norm{{1}}.{{2}}",)),
        (rf"{layer}\.classes\.mlp\.fc1{_TENSOR}", (f"{classes}MLP.0.{{1}}",)),
        (rf"{layer}\.classes\.mlp\.fc2{_TENSOR}", (f"{classes}MLP.2.{{1}}",)),
        (rf"{layer}\.classes\.padding_token", (f"{classes}padding_tokens",)),
        (rf"{layer}\.classes\.padding_guidance", (f"{classes}padding_guidance",)),
    ]
    for i in (0, 1):
        block = rf"{layer}\.spatial\.blocks\.{i}"
        rules += [
            (rf"{block}\.norm([12]){_TENSOR}", (f"{swin}block_{i + 1}.norm{{1}}.{{2}}",)),
            (rf"{block}\.attention\.([qkv]){_TENSOR}", (f"{swin}block_{i + 1}.attn.{{1}}.{{2}}",)),
            (rf"{block}\.out{_TENSOR}", (f"{swin}block_{i + 1}.attn.proj.{{1}}",)),
            (rf"{block}\.mlp\.fc([12]){_TENSOR}", (f"{swin}block_{i + 1}.mlp.fc{{1}}.{{2}}",)),
        ]
    return rules


def aggregator_rules() -> Rules:
    """The authors' names of everything in `aggregator.`."""
    rules = [
        (rf"aggregator\.embedding\.conv{_TENSOR}", (f"{TRANSFORMER}conv1.{{0}}",)),
        (rf"aggregator\.appearance{_TENSOR}", (f"{TRANSFORMER}guidance_projection.0.{{0}}",)),
        (rf"aggregator\.text{_TENSOR}", (f"{TRANSFORMER}text_guidance_projection.0.{{0}}",)),
        (
            rf"aggregator\.decoder_guidance\.(\d){_TENSOR}",
            (f"{TRANSFORMER}decoder_guidance_projection.{{0}}.0.{{1}}",),
        ),
        (rf"aggregator\.decoder\.head{_TENSOR}", (f"{TRANSFORMER}head.{{0}}",)),
        *layer_rules(r"aggregator\.layers", "layers"),
    ]
    places = (("conv1", 0), ("norm1", 1), ("conv2", 3), ("norm2", 4))
    for i in (0, 1):
        ours, theirs = rf"aggregator\.decoder\.stages\.{i}", f"{TRANSFORMER}decoder{i + 1}"
        rules.append((rf"{ours}\.up{_TENSOR}", (f"{theirs}.up.{{0}}",)))
        rules += [(rf"{ours}\.{n}{_TENSOR}", (f"{theirs}.conv.double_conv.{place}.{{0}}",)) for n, place in places]
    return rules


def _guidance_rules() -> Rules:
    net = r"guidance\.net"
    rules = [
        (rf"{net}\.conv1\.weight", ("backbone.stem.conv1.weight",)),
        (rf"{net}\.bn1{_NORM}", ("backbone.stem.conv1.norm.{0}",)),
    ]
    for i in (1, 2, 3):
        ours, theirs = rf"{net}\.layer{i}\.(\d+)", f"backbone.res{i + 1}.{{0}}"
        rules += [
            (rf"{ours}\.conv([123])\.weight", (f"{theirs}.conv{{1}}.weight",)),
            (rf"{ours}\.bn([123]){_NORM}", (f"{theirs}.conv{{1}}.norm.{{2}}",)),
            (rf"{ours}\.downsample\.0\.weight", (f"{theirs}.shortcut.weight",)),
            (rf"{ours}\.downsample\.1{_NORM}", (f"{theirs}.shortcut.norm.{{1}}",)),
        ]
    return rules


# CLIP, fused or split -------------------------------------------------------------------------------------------------
_FUSED = r"(.*\.attn)\.in_proj_weight"
_SPLIT = r"(.*\.attn)\.parametrizations\.in_proj_weight\.original([012])"


@dataclass(frozen=True)
class _Third(Link):
    """One of our three matrices out of their stack; written by `_fuse`, when all three are at hand."""

    which: int = 0

    def read(self, state: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return state[self.theirs[0]].chunk(3)[self.which]

    def write(self, tensor: Tensor, written: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}


def clip_link(theirs: str, *, split: bool) -> Callable[[str], Link | None]:
    """Links of our `backbone.clip.` to theirs; `split`: their query, key and value weights are apart."""

    def link(name: str) -> Link | None:
        if not name.startswith(_OURS_CLIP):
            return None
        inner = name.removeprefix(_OURS_CLIP)
        if match := re.fullmatch(_SPLIT, inner):
            which = int(match[2])
            if split:
                return Link(name, (f"{theirs}{match[1]}.{'qkv'[which]}_proj_weight",))
            return _Third(name, (f"{theirs}{match[1]}.in_proj_weight",), which=which)
        if split and (match := re.fullmatch(_FUSED, inner)):
            return Link(name, tuple(f"{theirs}{match[1]}.{x}_proj_weight" for x in "qkv"))
        return Link(name, (theirs + inner,), fit=fit_position if inner == IMAGE_POSITION else None)

    return link


def _fuse(theirs: str) -> Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]:
    def complete(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        own = model.state_dict()
        for name in own:
            if match := re.fullmatch(re.escape(_OURS_CLIP) + _SPLIT, name):
                parts = [own[f"{name[:-1]}{i}"] for i in range(3)]
                state[f"{theirs}{match[1]}.in_proj_weight"] = torch.cat(parts)
        return state

    return complete


# The families ---------------------------------------------------------------------------------------------------------
def shifted_masks(
    model: nn.Module, state: dict[str, Tensor], *, lists: Sequence[str] = ("layers",)
) -> dict[str, Tensor]:
    """The shifted windows' masks, which the authors store, in each of their `lists` of layers."""
    grid, window = model.grid, model.aggregator.shape.window  # type: ignore[union-attr]
    for name, i in product(lists, range(len(model.aggregator.layers))):  # type: ignore[arg-type,union-attr]
        mask = shift_mask((grid, grid), window=window, shift=window // 2, device=torch.device("cpu"))  # type: ignore[arg-type,operator]
        place = f"{TRANSFORMER}{name}.{i}.swin_block.block_2.attn_mask"
        state[place] = torch.zeros(mask.shape).masked_fill_(~mask, -100.0)
    return state


@lru_cache
def _link(v1: bool) -> Callable[[str], Link | None]:
    clip = clip_link(_THEIRS_CLIP, split=not v1)
    own: Rules = [
        *aggregator_rules(),
        (r"background", (f"{PREDICTOR}non_object_embedding",)),
        *(_guidance_rules() if v1 else [(rf"guidance\.up([12]){_TENSOR}", ("upsample{0}.{1}",))]),
    ]

    def link(name: str) -> Link | None:
        theirs = rename(name, own)
        return Link(name, theirs) if theirs else clip(name)

    return link


V1 = WeightLayout(
    name="cat_seg_v1",
    marks=("backbone.res2.0.conv1.weight", f"{TRANSFORMER}conv1.weight"),
    link=_link(v1=True),
    unused=r".*\.attn_mask",
    quick_gelu=True,
    complete=lambda model, state: _fuse(_THEIRS_CLIP)(model, shifted_masks(model, state)),
)
CVPR24 = WeightLayout(
    name="cat_seg_cvpr24",
    marks=("upsample1.weight", f"{TRANSFORMER}conv1.weight"),
    link=_link(v1=False),
    unused=r".*\.attn_mask",
    quick_gelu=True,
    complete=shifted_masks,
)


def layouts(*, v1: bool, own_guidance: bool) -> tuple[WeightLayout, ...]:
    """The families that a variant reads; a file of the other one is known and refused.

    Without `own_guidance` the model has a ViT in place of the guidance network of the authors' files.
    """
    own, other = (V1, CVPR24) if v1 else (CVPR24, V1)
    clip = replace(OPEN_CLIP, link=clip_link("", split=False), complete=_fuse(""))
    families = own, refused(other, instead_of=own), clip
    return families if own_guidance else (without_guidance(own), *families[1:], DINO)


def without_guidance(layout: WeightLayout) -> WeightLayout:
    """The layout for models with another guidance network, which keep theirs; such models write no such files."""

    def link(name: str) -> Link | None:
        return None if re.match(_GUIDED, name) else layout.link(name)

    def complete(_model: nn.Module, _state: dict[str, Tensor]) -> dict[str, Tensor]:
        raise ValueError(f"{layout.name} is read only by a model with another guidance network; write partseg's own")

    unused = rf"{layout.unused}|backbone\..*|.*guidance_projection\..*"
    return replace(layout, link=link, unused=unused, complete=complete)


def refused(layout: WeightLayout, *, instead_of: WeightLayout) -> WeightLayout:
    model = {"cat_seg_v1": "cat_seg", "cat_seg_cvpr24": "cat_seg_cvpr24"}

    def link(_name: str) -> None:
        raise ValueError(
            f"{layout.name} files are of another network than this model, which reads {instead_of.name}: "
            f"they are read only by model={model[layout.name]}"
        )

    return replace(layout, link=link)
