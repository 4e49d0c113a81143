"""Class aggregation: linear attention over the classes at each cell, guided by their texts (paper, section 3.4).

Legend: B images, T classes, h w cells, D cost width, G text guidance width, n heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from partseg.systems.cat_seg.attention import GuidedProjection, Mlp

EPS = 1e-6


class ClassLayer(nn.Module):
    """Attention over classes on the map pooled by `pooling`, MLP; the result is upsampled and added to the map.

    With `padding`, learned tokens fill the classes up to that number (CVPR 2024). They are one token, so that they cost
    one key and value, counted as often as it stands there.
    """

    def __init__(
        self, dim: int, guidance_dim: int, *, heads: int, pooling: int = 2, padding: int | None = None
    ) -> None:
        super().__init__()
        self.heads, self.pooling, self.padding = heads, pooling, padding
        self.norm1 = nn.LayerNorm(dim)
        self.attention = GuidedProjection(dim, guidance_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, activation=nn.ReLU())
        if padding is not None:
            self.padding_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.padding_guidance = nn.Parameter(torch.zeros(1, 1, guidance_dim))

    def forward(
        self, x: Float[Tensor, "B T h w D"], guidance: Float[Tensor, " #B T G"], *, chunks: Sequence[slice] = ()
    ) -> Tensor:
        """The maps [B, T, h, w, D] of all classes; with `chunks` (no gradients) in place, so many classes at a time."""
        guidance = guidance[:, :, None, None]
        padded = self._padding_sums(x.shape[1])
        if not chunks:
            pooled = self.pool(x)
            q, k, v = self.project(pooled, guidance)
            return x + self.finish(pooled, _read(q, _sums(k, v) + padded), size=x.shape[2:4])
        # sums over keys are all that a class needs of the others: made first, while no map has changed yet
        sums = padded + sum(_sums(*self.project(self.pool(x[:, c]), guidance[:, c])[1:]) for c in chunks)
        for c in chunks:
            pooled = self.pool(x[:, c])
            q, _, _ = self.project(pooled, guidance[:, c])
            x[:, c] += self.finish(pooled, _read(q, sums), size=x.shape[2:4])
        return x

    def pool(self, x: Float[Tensor, "B T h w D"]) -> Float[Tensor, "B T h/p w/p D"]:
        """Means of `pooling` x `pooling` cells."""
        p, (height, width) = self.pooling, x.shape[2:4]
        return x.unflatten(3, (width // p, p)).unflatten(2, (height // p, p)).mean((3, 5)) if p > 1 else x

    def project(self, pooled: Float[Tensor, "B T h w D"], guidance: Float[Tensor, " #B T 1 1 G"]) -> list[Tensor]:
        """Queries, keys and values [B, T, h, w, n, d]."""
        return [each.unflatten(-1, (self.heads, -1)) for each in self.attention(self.norm1(pooled), guidance)]

    def finish(self, pooled: Float[Tensor, "B T h w D"], mixed: Tensor, *, size: Sequence[int]) -> Tensor:
        """What is added to the map of `size`: values read by attention [B, T, h, w, n, d] and MLP, upsampled."""
        pooled = self.merge(pooled, mixed)
        if self.pooling == 1:
            return pooled
        maps = pooled.flatten(0, 1).permute(0, 3, 1, 2)
        maps = F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)
        return maps.permute(0, 2, 3, 1).unflatten(0, pooled.shape[:2])

    def merge(self, pooled: Float[Tensor, "B T h w D"], mixed: Tensor) -> Float[Tensor, "B T h w D"]:
        """Pooled cells with what attention read for them [B, T, h, w, n, d], after the MLP."""
        pooled = pooled + mixed.flatten(-2)
        return pooled + self.mlp(self.norm2(pooled))

    def _padding_sums(self, num_classes: int) -> Tensor:
        """What the padding tokens add to the sums, [1, 1, 1, n, d, d + 1], or a zero."""
        if self.padding is None or num_classes >= self.padding:
            return self.norm1.weight.new_zeros(())
        token, guidance = (each[:, :, None, None] for each in (self.padding_token, self.padding_guidance))
        _, k, v = self.project(token, guidance)
        return (self.padding - num_classes) * _sums(k, v)


def _sums(k: Float[Tensor, "B T h w n d"], v: Float[Tensor, "B T h w n d"]) -> Float[Tensor, "B h w n d d+1"]:
    """Over classes: key x value, and the keys in the last column (Katharopoulos et al., ICML 2020, equation 5)."""
    return torch.einsum("bthwnd,bthwne->bhwnde", F.elu(k) + 1, F.pad(v, (0, 1), value=1.0))


def _read(q: Float[Tensor, "B T h w n d"], sums: Float[Tensor, " #B #h #w n d d+1"]) -> Float[Tensor, "B T h w n d"]:
    """Values read by queries."""
    read = torch.einsum("bthwnd,bhwnde->bthwne", F.elu(q) + 1, sums)
    return read[..., :-1] / (read[..., -1:] + EPS)
