"""Integers that label maps share, and the one rule by which labels are read at another size."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

IGNORE_LABEL = 65535
"""Nothing is known about this pixel (void, unseen in training, no part label): no loss, no score."""

BACKGROUND_LABEL = 65534
"""Object maps only: the pixel is known to carry none of the vocabulary's objects."""


def nearest_index(length: int, new_length: int) -> Int[np.ndarray, " new_length"]:
    """Source index of every index after resizing `length` pixels: the pixel under the new pixel's centre.

    Half-way cases go to the later pixel. Nearest neighbour in partseg means this, wherever labels or masks are resized.
    """
    return ((2 * np.arange(new_length) + 1) * length) // (2 * new_length)


def resize_labels(labels: Int[np.ndarray, "h w"], size: tuple[int, int]) -> Int[np.ndarray, "H W"]:
    """A label map at another (height, width), nearest neighbour."""
    if labels.shape == tuple(size):
        return labels
    rows, columns = (nearest_index(*lengths) for lengths in zip(labels.shape, size))
    return labels.take(rows, axis=0).take(columns, axis=1)


def presence(labels: Int[Tensor, "B H W"], num_classes: int) -> Bool[Tensor, "B C"]:
    """Which classes occur in each image; labels of num_classes and above (ignore, background) count as none."""
    present = torch.zeros(len(labels), num_classes + 1, dtype=torch.bool, device=labels.device)
    present.scatter_(1, labels.clamp(max=num_classes).flatten(1).long(), True)
    return present[:, :num_classes]
