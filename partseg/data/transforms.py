"""Joint geometry of a photo and its label maps, and colour changes of the photo, from an explicit random generator.

A geometry is drawn first and applied after: the photo is resized once per step, labels are read by index, so that the
nearest neighbour is exact and ids are never averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageEnhance
from torch import Tensor

CHANNEL_ORDERS = ("rgb", "bgr")
LABEL_RULES = ("centre", "corner")


@dataclass(frozen=True)
class Geometry:
    """Crop, then one resize per entry of `sizes` (height, width), then an optional horizontal flip.

    `box` is left, top, right, bottom in source pixels; no `sizes` means the crop's own size. `label_rule` says which
    source pixel the last resize takes a label from: the one under a pixel's centre, or under its upper left corner.
    """

    box: tuple[int, int, int, int]
    sizes: tuple[tuple[int, int], ...] = ()
    flip: bool = False
    label_rule: str = "centre"

    def image(self, image: Image.Image) -> Image.Image:
        """The photo, bilinear as Pillow does it: antialiased when shrinking, as the public CLIPSeg preprocessing."""
        box: tuple[int, int, int, int] | None = self.box
        if not self.sizes:
            image = image.crop(self.box)
        for height, width in self.sizes:
            image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
            box = None
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else image

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """A label map or mask [h, w] through the same steps, nearest neighbour."""
        if not self.flip and not self.sizes and self.box == (0, 0, *labels.shape[::-1]):
            return labels
        rows, columns = self._indices
        if labels.flags.f_contiguous:  # decoded COCO masks: taking along the slow axis first saves a full copy
            return labels.T.take(columns, axis=0).take(rows, axis=1).T
        return labels.take(rows, axis=0).take(columns, axis=1)

    @cached_property
    def _indices(self) -> tuple[np.ndarray, np.ndarray]:
        """Source row of every output row, source column of every output column."""
        left, top, right, bottom = self.box
        rows = _nearest(top, bottom, [height for height, _ in self.sizes], self.label_rule)
        columns = _nearest(left, right, [width for _, width in self.sizes], self.label_rule)
        return rows, np.ascontiguousarray(columns[::-1]) if self.flip else columns


def _nearest(start: int, stop: int, lengths: Sequence[int], label_rule: str) -> np.ndarray:
    """Source index of every output index after resizing start..stop through `lengths`."""
    indices = np.arange(start, stop)
    for step, length in enumerate(lengths, 1):
        if label_rule == "corner" and step == len(lengths):  # torch's mode="nearest", which computes in single precision
            scale = np.float32(len(indices)) / np.float32(length)
            source = np.floor(np.arange(length, dtype=np.float32) * scale).astype(np.int64)
            indices = indices[np.minimum(source, len(indices) - 1)]
        else:
            indices = indices[((2 * np.arange(length) + 1) * len(indices)) // (2 * length)]
    return indices


def via_short_edge(
    height: int, width: int, *, short_edge: int | None, long_edge: int | None
) -> tuple[tuple[int, int], ...]:
    """The official recipe's intermediate size (short edge to `short_edge`, long edge at most `long_edge`), if any."""
    if short_edge is None:
        return ()
    scale = short_edge / min(height, width)
    if long_edge is not None and scale * max(height, width) > long_edge:
        scale = long_edge / max(height, width)
    return ((max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))),)


def random_box(
    height: int, width: int, *, scale: tuple[float, float] | None, ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A crop of `scale` of the area and log-uniform aspect `ratio`, cut to fit; the whole image if `scale` is None."""
    if scale is None:
        return (0, 0, width, height)
    area = height * width * rng.uniform(*scale)
    aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
    box_w = int(np.clip(round(np.sqrt(area * aspect)), 1, width))
    box_h = int(np.clip(round(np.sqrt(area / aspect)), 1, height))
    left = int(rng.integers(0, width - box_w + 1))
    top = int(rng.integers(0, height - box_h + 1))
    return (left, top, left + box_w, top + box_h)


def jitter_colour(image: Image.Image, *, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, each times a factor from 1 - strength .. 1 + strength."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(float(rng.uniform(1 - strength, 1 + strength)))
    return image


def to_tensor(image: Image.Image, *, channel_order: str) -> UInt8[Tensor, "3 H W"]:
    """The photo as uint8 channels-first tensor; "bgr" reverses the channels (official training)."""
    array = np.asarray(image)
    if channel_order == "bgr":
        array = array[:, :, ::-1]
    return torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))  # a copy: Pillow's pixels are read-only
