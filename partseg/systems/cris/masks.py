"""How the authors bring a probability map back to the photo: two bicubic steps, the second an inverse affine map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from partseg.geometry import Size


def official_masks(logits: Float[Tensor, "E h w"], size: Size, input_size: Size) -> Float[Tensor, "E H W"]:
    """Probabilities at the photo's `size`: with aligned corners to the network's, then out of the letterbox.

    The affine map sends corners of the photo, taken as pixel positions, to corners of the letterbox: half a pixel of
    each is lost, so masks lie up to half a network pixel off. Ours does not (`PhraseScores`).
    """
    probabilities = F.interpolate(logits.float().sigmoid()[None], size=input_size, mode="bicubic", align_corners=True)
    scale = min(input_size[0] / size[0], input_size[1] / size[1])
    axes = []
    for length, whole in zip(size, input_size):
        place = torch.arange(length, device=logits.device) * scale + (whole - scale * length) / 2
        axes.append(2 * place / (whole - 1) - 1)
    grid = torch.stack(torch.meshgrid(axes[1], axes[0], indexing="xy"), dim=2)[None]
    return F.grid_sample(probabilities, grid, mode="bicubic", padding_mode="zeros", align_corners=True)[0]
