"""What the two attentions of an aggregation layer share: queries and keys read guidance beside the cost, values do not.

Legend: B images, T classes, h w cells, D cost width, G guidance width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class GuidedProjection(nn.Module):
    """Queries and keys of [x | guidance], values of x alone.

    W [x | g] = W_x x + W_g g: the second term is the same for all classes (spatial guidance) or all cells (text), so it
    is computed once per image or class, and the concatenation never exists.
    """

    def __init__(self, dim: int, guidance_dim: int) -> None:
        super().__init__()
        self.q = nn.Linear(dim + guidance_dim, dim)
        self.k = nn.Linear(dim + guidance_dim, dim)
        self.v = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B T h w D"], guidance: Float[Tensor, " #B #T #h #w G"]) -> list[Tensor]:
        """Queries, keys and values [B, T, h, w, D]."""
        dim = x.shape[-1]
        shared = F.linear(guidance, torch.cat([self.q.weight[:, dim:], self.k.weight[:, dim:]])).chunk(2, dim=-1)
        weight = torch.cat([self.q.weight[:, :dim], self.k.weight[:, :dim], self.v.weight])
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        q, k, v = F.linear(x, weight, bias).chunk(3, dim=-1)
        return [q + shared[0], k + shared[1], v]


class Mlp(nn.Module):
    """Linear to `ratio` times the width, activation, Linear back."""

    def __init__(self, dim: int, *, activation: nn.Module, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.activation = activation
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Applied cell by cell."""
        return self.fc2(self.activation(self.fc1(x)))
