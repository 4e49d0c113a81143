"""The class attention of PartCATSeg: classes compete for each other's values, as slots do for pixels.

The authors' configuration says linear attention, as CAT-Seg has; their code sets this one whatever it says.
Legend: B images, T classes, h w cells, D cost width, G text guidance width, n heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
        """The maps [B, T, h, w, D] of all classes; with `chunks` (no gradients) in place, which splits cells.

        Classes cannot be split here: each looks at all others. Cells do not see each other, so a row of pooled ones is
        attended to at a time, and each row of the map changes once the two pooled rows that it lies between are known.
        """
        guidance = guidance[:, :, None, None]
        if not chunks:
            pooled = self.pool(x)
            return x + self.finish(pooled, _attend(*self.project(pooled, guidance)), size=x.shape[2:4])
        height, last = x.shape[2], x.shape[2] // self.pooling - 1
        done, above = 0, x.new_zeros(())
        for row in range(last + 1):
            # no row changes before it was pooled: bilinear rows with aligned corners lie no lower than their own cells
            below = self._row(x[:, :, row * self.pooling : (row + 1) * self.pooling], guidance)
            while done < height and done * last <= row * (height - 1):
                share = row - done * last / max(1, height - 1)
                x[:, :, done].add_(above, alpha=share).add_(below, alpha=1 - share)
                done += 1
            above = below
        return x

    def _row(self, x: Float[Tensor, "B T p w D"], guidance: Float[Tensor, "#B T 1 1 G"]) -> Float[Tensor, "B T w D"]:
        """What one row of pooled cells adds, upsampled along the row; a few cells at a time: T x T scores grow fast."""
        pooled = self.pool(x)
        some = pooled.split(max(1, SCORES // (len(x) * self.heads * x.shape[1] ** 2)), dim=3)
        merged = torch.cat([self.merge(each, _attend(*self.project(each, guidance))) for each in some], dim=3)
        if self.pooling == 1:
            return merged[:, :, 0]
        line = merged[:, :, 0].flatten(0, 1).transpose(1, 2)
        line = F.interpolate(line, size=x.shape[3], mode="linear", align_corners=True)
        return line.transpose(1, 2).unflatten(0, x.shape[:2])


def _attend(
    q: Float[Tensor, "B T h w n d"], k: Float[Tensor, "B T h w n d"], v: Float[Tensor, "B T h w n d"]
) -> Float[Tensor, "B T h w n d"]:
    """Values read by queries; every key spends a weight of one on the queries, every query is then given a mean."""
    q, k, v = (each.permute(0, 2, 3, 4, 1, 5) for each in (q, k, v))
    weight = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-2) + EPS
    return (weight / weight.sum(-1, keepdim=True) @ v).permute(0, 4, 1, 2, 3, 5)
