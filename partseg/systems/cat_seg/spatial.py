"""Spatial aggregation: two Swin blocks over the cells of each class's map, guided by the picture (paper, section 3.3).

Legend: B images, T classes, h w cells, D cost width, G guidance width, L cells of a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from partseg.systems.cat_seg.attention import GuidedProjection, Mlp


class SwinBlock(nn.Module):
    """Window attention and MLP, pre-norm, without relative position bias; windows start at `shift`."""

    def __init__(self, dim: int, guidance_dim: int, *, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attention = GuidedProjection(dim, guidance_dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, activation=nn.GELU())

    def forward(self, x: Float[Tensor, "B T h w D"], guidance: Float[Tensor, "B 1 h w G"]) -> Tensor:
        """The maps [B, T, h, w, D] after the block."""
        # one window is the whole map: there is nothing to shift
        shift = self.shift if min(x.shape[2:4]) > self.window else 0
        x = x + self._attend(self.norm1(x), guidance, shift)
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor, guidance: Tensor, shift: int) -> Tensor:
        size = x.shape[2], x.shape[3]
        mask = None
        if shift:
            x, guidance = (torch.roll(each, (-shift, -shift), dims=(2, 3)) for each in (x, guidance))
            mask = shift_mask(size, window=self.window, shift=shift, device=x.device).repeat_interleave(self.heads, 0)
        q, k, v = (self._windows(each.flatten(0, 1)) for each in self.attention(x, guidance))
        # windows and heads are one dimension, so that the mask is the same for all classes and is never repeated
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = self.out(self._map(mixed, size).view(x.shape))
        return torch.roll(mixed, (shift, shift), dims=(2, 3)) if shift else mixed

    def _windows(self, x: Float[Tensor, "S h w D"]) -> Float[Tensor, "S windows*heads L d"]:
        n, (count, height, width, dim) = self.window, x.shape
        x = x.view(count, height // n, n, width // n, n, self.heads, dim // self.heads)
        return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(count, -1, n * n, dim // self.heads)

    def _map(self, x: Float[Tensor, "S windows*heads L d"], size: tuple[int, int]) -> Float[Tensor, "S h w D"]:
        n, rows, columns = self.window, size[0] // self.window, size[1] // self.window
        x = x.view(len(x), rows, columns, self.heads, n, n, -1)
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(len(x), *size, -1)


def shift_mask(size: tuple[int, int], *, window: int, shift: int, device: torch.device) -> Bool[Tensor, "windows L L"]:
    """Which cells of a shifted window see each other: those that were neighbours before the map was rolled."""
    regions = []
    for length in size:
        place = torch.arange(length, device=device)
        regions.append((place >= length - window).long() + (place >= length - shift))
    region = 3 * regions[0][:, None] + regions[1]
    rows, columns = size[0] // window, size[1] // window
    region = region.view(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, -1)
    return region[:, :, None] == region[:, None, :]


class SpatialLayer(nn.Module):
    """Two Swin blocks, the second shifted by half a window; both read the same normalised guidance."""

    def __init__(self, dim: int, guidance_dim: int, *, heads: int, window: int) -> None:
        super().__init__()
        self.guidance_norm = nn.LayerNorm(guidance_dim)
        self.blocks = nn.ModuleList(
            SwinBlock(dim, guidance_dim, heads=heads, window=window, shift=shift) for shift in (0, window // 2)
        )

    def forward(self, x: Float[Tensor, "B T h w D"], guidance: Float[Tensor, "B h w G"]) -> Tensor:
        """The maps [B, T, h, w, D] of some classes; no class sees another."""
        guidance = self.guidance_norm(guidance)[:, None]
        for block in self.blocks:
            x = block(x, guidance)
        return x
