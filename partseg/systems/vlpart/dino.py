"""DINO ViT-S/8 as VLPart's parser reads it: patches every 4 pixels, keys of the last block, and where the object is.

Legend: T tokens of the picture's grid without CLS, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from partseg.backbones.clip_vit import IMAGENET_MEAN, IMAGENET_STD

SALIENT_HEADS = (0, 2, 4, 5)
"""Heads of the last block whose attention lies on objects (Amir et al., Deep ViT Features, 2021)."""


@dataclass(frozen=True)
class Descriptors:
    """What is kept of a picture: its CLS token, a key per cell, how salient a cell is (0..1), and the grid."""

    cls: Float[Tensor, " D"]
    keys: Float[Tensor, "T D"]
    saliency: Float[Tensor, " T"]
    grid: tuple[int, int]


class Dino(nn.Module):
    """A frozen ViT with overlapping patches; the default sizes are those of `vit_small_patch8_224.dino`."""

    def __init__(
        self,
        *,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        patch_size: int = 8,
        trained_size: int = 224,
        stride: int = 4,
    ) -> None:
        super().__init__()
        self.net = VisionTransformer(
            img_size=trained_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            num_classes=0,
        )
        self.patch_size = patch_size
        self.stride = stride
        self.requires_grad_(False).eval()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of cells; ValueError for a picture smaller than a patch."""
        if min(height, width) < self.patch_size:
            raise ValueError(f"a picture of {height} x {width} pixels is smaller than a patch of {self.patch_size}")
        return 1 + (height - self.patch_size) // self.stride, 1 + (width - self.patch_size) // self.stride

    @torch.no_grad()
    def forward(self, image: UInt8[Tensor, "3 H W"]) -> Descriptors:
        """Descriptors of one picture."""
        mean, std = (torch.tensor(x, device=image.device).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        return self.describe((image / 255 - mean) / std)

    @torch.no_grad()
    def describe(self, picture: Float[Tensor, "3 H W"]) -> Descriptors:
        """Descriptors of a normalised picture."""
        net: Any = self.net
        grid = self.grid(*picture.shape[1:])
        patches = F.conv2d(picture[None], net.patch_embed.proj.weight, net.patch_embed.proj.bias, self.stride)
        x = torch.cat([net.cls_token, patches.flatten(2).transpose(1, 2)], 1) + self._position(grid)
        for block in net.blocks[:-1]:
            x = block(x)
        last = net.blocks[-1]
        heads = last.attn.num_heads
        q, k, _ = last.attn.qkv(last.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q[0, :, :1] @ k[0].transpose(1, 2) * last.attn.scale).softmax(-1)[:, 0, 1:]
        saliency = attention[list(SALIENT_HEADS)].mean(0)
        low, high = saliency.aminmax()
        keys = k[0, :, 1:].permute(1, 2, 0).flatten(1)
        return Descriptors(last(x)[0, 0], keys, (saliency - low) / (high - low).clamp(min=1e-12), grid)

    def _position(self, grid: Sequence[int]) -> Float[Tensor, "1 1+T D"]:
        """The position table resampled, bicubic, with DINO's scale of (cells + 0.1) over the trained side."""
        table: Tensor = self.net.pos_embed  # type: ignore[assignment]
        side = round((table.shape[1] - 1) ** 0.5)
        if tuple(grid) == (side, side):
            return table
        cells = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = tuple((length + 0.1) / side for length in grid)
        cells = F.interpolate(cells, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)
        return torch.cat([table[:, :1], cells.flatten(2).transpose(1, 2)], 1)
