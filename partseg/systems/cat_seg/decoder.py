"""Upsampling decoder (paper, section 3.5): each class's map twice doubled, with fine features of the picture beside it.

Legend: B images, T classes, h w cells, D cost width, g guidance width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class UpStage(nn.Module):
    """Transposed convolution by two, guidance beside it, then twice [3 x 3 convolution, GroupNorm, ReLU].

    The guidance's share of the first convolution is computed once per image, not per class.
    """

    def __init__(self, dim: int, out_dim: int, guidance_dim: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, dim - guidance_dim, 2, stride=2)
        self.conv1 = nn.Conv2d(dim, out_dim, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(out_dim // 16, out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(out_dim // 16, out_dim)

    def forward(self, x: Float[Tensor, "B*T D h w"], guidance: Float[Tensor, "B g 2*h 2*w"]) -> Tensor:
        """Maps [B * T, out_dim, 2 h, 2 w]."""
        x = self.up(x)
        own, theirs = self.conv1.weight.split([x.shape[1], guidance.shape[1]], dim=1)
        x = F.conv2d(x, own, padding=1).unflatten(0, (len(guidance), -1))
        x = (x + F.conv2d(guidance, theirs, padding=1)[:, None]).flatten(0, 1)
        x = F.relu(self.norm1(x), inplace=True)
        return F.relu(self.norm2(self.conv2(x)), inplace=True)


class Decoder(nn.Module):
    """Two stages and a 3 x 3 convolution to one logit per class, at four times the cells."""

    def __init__(self, dim: int, dims: Sequence[int], guidance_dims: Sequence[int]) -> None:
        super().__init__()
        ins = (dim, *dims[:-1])
        self.stages = nn.ModuleList(UpStage(*each) for each in zip(ins, dims, guidance_dims, strict=True))
        self.head = nn.Conv2d(dims[-1], 1, 3, padding=1)

    def forward(self, x: Float[Tensor, "B T h w D"], guidance: Sequence[Tensor]) -> Float[Tensor, "B T 4*h 4*w"]:
        """Logits of some classes; `guidance` is projected already, coarse to fine."""
        maps = x.flatten(0, 1).permute(0, 3, 1, 2)
        for stage, each in zip(self.stages, guidance, strict=True):
            maps = stage(maps, each)
        return self.head(maps)[:, 0].unflatten(0, x.shape[:2])
