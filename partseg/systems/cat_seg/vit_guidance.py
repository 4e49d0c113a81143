"""Guidance from a vision transformer beside CLIP: DINOv2 in PartCATSeg, or any other that timm has."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from partseg.backbones.clip_vit import IMAGENET_MEAN, IMAGENET_STD
from partseg.systems.cat_seg.aggregator import Guidance
from partseg.weights.layouts import Link, WeightLayout

POSITION = "pos_embed"
NETWORK = "guidance.net."


class VitGuidance(nn.Module):
    """A ViT that timm knows by `name`, on pictures of `size` pixels; its last, normalised tokens at every resolution.

    Its weights come with a checkpoint, or through init_from=timm/vit_small_patch14_dinov2.lvd142m (a hub name) or a
    file. `shape` changes sizes of the named network (`embed_dim`, `depth`, `num_heads`), for small ones.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        name: str = "vit_small_patch14_dinov2",
        *,
        size: int = 448,
        shape: Mapping[str, int] | None = None,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.name, self.size = name, size
        self.net: Any = _vit(name, size=size, shape=dict(shape or {}))
        self.appearance_dim = int(self.net.embed_dim)
        self.decoder_dims = (self.appearance_dim, self.appearance_dim)
        self.register_buffer("image_mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(3, 1, 1), persistent=False)

    def input_size(self, _grid: int) -> int:
        """Side of the square that the network wants, whatever the cells of CLIP."""
        return self.size

    def forward(self, images: Float[Tensor, "B 3 size size"], grid: int) -> Guidance:
        """The map of images 0..1 at `grid` cells a side, and at two and four times as many for the decoder."""
        maps = self.features(images)
        at = [_resized(maps, factor * grid) for factor in (1, 2, 4)]
        return Guidance(at[0], (at[1], at[2]))

    def features(self, images: Float[Tensor, "B 3 size size"]) -> Float[Tensor, "B C rows columns"]:
        """Patch tokens after the last norm, as a map."""
        x = (images - self.image_mean) / self.image_std
        table, (rows, columns) = getattr(self.net, POSITION, None), self.net.patch_embed.grid_size
        if table is None:  # rotary positions
            tokens = self.net(x)
        else:
            tokens = functional_call(self.net, {POSITION: resized_table(table, (rows, columns))}, (x,))
        return tokens[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


def resized_table(table: Float[Tensor, "1 N C"], grid: tuple[int, int]) -> Float[Tensor, "1 n C"]:
    """A table of square native size for another grid, tokens before the patches kept.

    As DINOv2's own code does it: bicubic, no antialias, and scaled by (cells + 0.1) / native cells; timm's resampling
    gives other tokens.
    """
    native = int(table.shape[1] ** 0.5)
    if grid == (native, native):
        return table
    before, cells = table.split([table.shape[1] - native**2, native**2], dim=1)
    maps = cells.unflatten(1, (native, native)).permute(0, 3, 1, 2)
    scale = ((grid[0] + 0.1) / native, (grid[1] + 0.1) / native)
    maps = F.interpolate(maps.float(), scale_factor=scale, mode="bicubic").to(table.dtype)
    return torch.cat([before, maps.flatten(2).transpose(1, 2)], dim=1)


def _resized(maps: Tensor, cells: int) -> Tensor:
    return F.interpolate(maps, size=(cells, cells), mode="bilinear", align_corners=False)


def _vit(name: str, *, size: int, shape: dict[str, Any]) -> Any:
    """The network with the position table of its native size; KeyError and ValueError say what timm has instead."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models("vit_*"), n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; timm.list_models('vit_*') tells them"
        raise KeyError(f"model.guidance.name={name!r} is no network that timm {timm.__version__} knows{hint}")
    try:
        net: Any = timm.create_model(name, img_size=size, num_classes=0, global_pool="", **shape)
        patch, grid = net.patch_embed.patch_size, net.patch_embed.grid_size
        prefix = net.num_prefix_tokens
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        raise ValueError(f"model.guidance.name={name!r} is no plain vision transformer in timm: {error}") from error
    if size % patch[0] or patch[0] != patch[1]:
        raise ValueError(f"model.guidance.size={size} must be a multiple of the {patch[0]}-pixel patches of {name}")
    if getattr(net, POSITION, None) is not None:
        native = net.default_cfg["input_size"][-1] // patch[0]
        before = net.pos_embed.shape[1] - grid[0] * grid[1]
        if before not in (0, prefix):
            raise ValueError(f"model.guidance.name={name!r} has a position table that partseg cannot resize")
        net.pos_embed = nn.Parameter(torch.empty(1, before + native**2, net.embed_dim))
        nn.init.trunc_normal_(net.pos_embed, std=0.02)
    return net


DINO = WeightLayout(
    name="dino",
    marks=("cls_token", "patch_embed.proj.weight"),
    link=lambda name: Link(name, (name.removeprefix(NETWORK),)) if name.startswith(NETWORK) else None,
    unused=r"mask_token|head\..*",
    holds=(f"{NETWORK}blocks",),
)
"""DINO, DINOv2 and timm's own files: the same names."""
