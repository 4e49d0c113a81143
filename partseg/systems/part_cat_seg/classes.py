"""The class attention of PartCATSeg: classes compete for each other's values, as slots do for pixels.

The authors' configuration says linear attention, as CAT-Seg has; their code sets this one whatever it says.
Legend: B images, T classes, h w cells, D cost width, G text guidance width, n heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from partseg.systems.cat_seg.classes import ClassLayer

EPS = 1e-8
SCORES = 1 << 23
"""Scores of classes with classes at once, without gradients: 32 MB, of which softmax and its scaling make three."""


class CompetingClassLayer(ClassLayer):
    """A class layer whose attention is normalised over the queries first, then over the keys (slot attention)."""

    def forward(
        self, x: Float[Tensor, "B T h w D"], guidance: Float[Tensor, " #B T G"], *, chunks: Sequence[slice] = ()
    ) -> Tensor:
        """The maps [B, T, h, w, D] of all classes; with `chunks` (no gradients) in place.

        Then a few cells are attended to at a time: T x T scores of all cells would outgrow the volume.
        """
        guidance = guidance[:, :, None, None]
        pooled = self.pool(x)
        if not chunks:
            return x + self.finish(pooled, _attend(*self.project(pooled, guidance)), size=x.shape[2:4])
        cells = pooled.flatten(2, 3).unsqueeze(2)
        some = cells.split(max(1, SCORES // (len(x) * self.heads * x.shape[1] ** 2)), dim=3)
        mixed = torch.cat([_attend(*self.project(each, guidance)) for each in some], dim=3)
        mixed = mixed.squeeze(2).unflatten(2, pooled.shape[2:4])
        for c in chunks:
            x[:, c] += self.finish(pooled[:, c], mixed[:, c], size=x.shape[2:4])
        return x


def _attend(
    q: Float[Tensor, "B T h w n d"], k: Float[Tensor, "B T h w n d"], v: Float[Tensor, "B T h w n d"]
) -> Float[Tensor, "B T h w n d"]:
    """Values read by queries; every key spends a weight of one on the queries, every query is then given a mean."""
    q, k, v = (each.permute(0, 2, 3, 4, 1, 5) for each in (q, k, v))
    weight = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-2) + EPS
    return (weight / weight.sum(-1, keepdim=True) @ v).permute(0, 4, 1, 2, 3, 5)
