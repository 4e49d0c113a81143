"""CRIS's neck: image maps of three scales and the phrase's feature, fused into one map (paper section 3.2).

Legend: N (image, phrase) pairs, D width of CLIP's common space, w width of the fused map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU; the size stays."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def doubled(x: Tensor) -> Tensor:
    """Twice the size, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Neck(nn.Module):
    """`image_dims` are the channels at 1/8, 1/16, 1/32, `widths` those of the three branches; the middle one is w."""

    def __init__(self, image_dims: tuple[int, int, int], state_dim: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        low, width, high = widths
        self.text = nn.Sequential(nn.Linear(state_dim, high, bias=False), nn.BatchNorm1d(high), nn.ReLU(inplace=True))
        self.image3 = block(image_dims[0], low, 3)
        self.image4 = block(image_dims[1], width, 3)
        self.image5 = block(image_dims[2], high, 1)
        self.norm = nn.BatchNorm2d(high)
        self.merge4 = block(width + high, width, 1)
        self.merge3 = block(low + width, width, 1)
        self.out5 = block(high, width, 3)
        self.out4 = block(width, width, 3)
        self.out3 = block(width, width, 3)
        self.join = block(3 * width, width, 1)
        self.place = block(width + 2, width, 3)
        self.last = block(width, width, 3)

    def branches(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What does not depend on the phrase: once per image."""
        return F.avg_pool2d(self.image3(c3), 2), self.image4(c4), self.image5(c5)

    def forward(self, branches: tuple[Tensor, Tensor, Tensor], state: Float[Tensor, "N D"]) -> Float[Tensor, "N w h w"]:
        """The fused map at 1/16 of the image's size, each image with its phrase."""
        b3, b4, b5 = branches
        f5 = F.relu(self.norm(b5 * self.text(state)[:, :, None, None]))
        f4 = self.merge4(torch.cat([b4, doubled(f5)], dim=1))
        f3 = self.merge3(torch.cat([b3, f4], dim=1))
        joined = self.join(torch.cat([self.out3(f3), self.out4(f4), doubled(self.out5(f5))], dim=1))
        return self.last(self.place(torch.cat([joined, coordinates(joined)], dim=1)))


def coordinates(like: Float[Tensor, "N w h w"]) -> Float[Tensor, "N 2 h w"]:
    """x and y of every cell, from -1 to 1 (CoordConv)."""
    height, width = like.shape[-2:]
    x = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype).expand(height, -1)
    y = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)[:, None].expand(-1, width)
    return torch.stack([x, y]).expand(len(like), -1, -1, -1)
