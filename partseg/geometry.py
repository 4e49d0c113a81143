"""How a photo becomes a network's input, and its labels, boxes and masks along with it.

A geometry is drawn or chosen first and applied after: the photo is resized once per step, labels are read by index, so
that the nearest neighbour is exact and ids are never averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from partseg.labels import nearest_index

ChannelOrder = Literal["rgb", "bgr"]
LabelRule = Literal["centre", "corner"]
Resize = Literal["squash", "short_edge", "letterbox"]

Size = tuple[int, int]
"""Height and width in pixels."""

Region = tuple[int, int, int, int]
"""Top, left, height and width of the part of a picture that the photo fills."""


@dataclass(frozen=True)
class Geometry:
    """Crop, then one resize per entry of `sizes`, then a horizontal flip, then the place on a canvas.

    `box` is left, top, right, bottom in source pixels; no `sizes` means the crop's own size. `label_rule` says which
    source pixel the last resize takes a label from: the one under a pixel's centre, or under its upper left corner.
    `canvas` is the size of the result, `offset` (top, left) where the resized photo begins on it: negative numbers cut
    it off, what it does not cover is `fill` in pictures. None: the result is the resized photo.
    """

    box: tuple[int, int, int, int]
    sizes: tuple[Size, ...] = ()
    flip: bool = False
    label_rule: LabelRule = "centre"
    canvas: Size | None = None
    offset: tuple[int, int] = (0, 0)
    fill: tuple[int, int, int] = (0, 0, 0)

    @property
    def resized(self) -> Size:
        """Size of the photo before it is placed."""
        left, top, right, bottom = self.box
        return self.sizes[-1] if self.sizes else (bottom - top, right - left)

    @property
    def size(self) -> Size:
        """Size of the result."""
        return self.canvas or self.resized

    @property
    def region(self) -> Region:
        """The part of the result that the photo fills."""
        (top, left), (height, width), (rows, columns) = self.offset, self.resized, self.size
        first, begin = max(0, top), max(0, left)
        return first, begin, max(0, min(rows, top + height) - first), max(0, min(columns, left + width) - begin)

    def image(self, image: Image.Image) -> Image.Image:
        """The photo, bilinear as Pillow does it: antialiased when shrinking, as the public CLIPSeg preprocessing."""
        box: tuple[int, int, int, int] | None = self.box
        if not self.sizes:
            image = image.crop(self.box)
        for height, width in self.sizes:
            image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
            box = None
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.canvas is None:
            return image
        sheet = Image.new("RGB", self.canvas[::-1], self.fill)
        sheet.paste(image, self.offset[::-1])
        return sheet

    def labels(self, labels: np.ndarray, *, fill: int = 0) -> np.ndarray:
        """A label map or mask [h, w] through the same steps, nearest neighbour; `fill` where the photo is not."""
        if not self.flip and not self.sizes and not self.canvas and self.box == (0, 0, *labels.shape[::-1]):
            return labels
        rows, columns = self._indices
        if labels.flags.f_contiguous:  # decoded COCO masks: taking along the slow axis first saves a full copy
            resized = labels.T.take(columns, axis=0).take(rows, axis=1).T
        else:
            resized = labels.take(rows, axis=0).take(columns, axis=1)
        if self.canvas is None:
            return resized
        placed = np.full(self.canvas, fill, labels.dtype, order="F" if labels.flags.f_contiguous else "C")
        top, left, height, width = self.region
        first, begin = top - self.offset[0], left - self.offset[1]
        placed[top : top + height, left : left + width] = resized[first : first + height, begin : begin + width]
        return placed

    def inside(self) -> Bool[np.ndarray, "h w"]:
        """Where the result shows the photo."""
        top, left, height, width = self.region
        shown = np.zeros(self.size, bool)
        shown[top : top + height, left : left + width] = True
        return shown

    def boxes(self, boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
        """Boxes (left, top, right, bottom) through the same steps, cut to the result; empty ones have no area."""
        left, top, right, bottom = self.box
        height, width = self.resized
        scale = np.array([width / (right - left), height / (bottom - top)] * 2)
        moved = (np.asarray(boxes, np.float64).reshape(-1, 4) - [left, top, left, top]) * scale
        moved = moved.clip(0, [width, height] * 2)
        if self.flip:
            moved[:, [0, 2]] = width - moved[:, [2, 0]]
        moved += [self.offset[1], self.offset[0]] * 2
        return moved.clip(0, [self.size[1], self.size[0]] * 2)

    @cached_property
    def _indices(self) -> tuple[np.ndarray, np.ndarray]:
        """Source row of every resized row, source column of every resized column."""
        left, top, right, bottom = self.box
        rows = _nearest(top, bottom, [height for height, _ in self.sizes], self.label_rule)
        columns = _nearest(left, right, [width for _, width in self.sizes], self.label_rule)
        return rows, np.ascontiguousarray(columns[::-1]) if self.flip else columns


def _nearest(start: int, stop: int, lengths: Sequence[int], label_rule: LabelRule) -> np.ndarray:
    """Source index of every output index after resizing start..stop through `lengths`."""
    indices = np.arange(start, stop)
    for step, length in enumerate(lengths, 1):
        if label_rule == "corner" and step == len(lengths):  # torch's mode="nearest", in single precision
            scale = np.float32(len(indices)) / np.float32(length)
            source = np.floor(np.arange(length, dtype=np.float32) * scale).astype(np.int64)
            indices = indices[np.minimum(source, len(indices) - 1)]
        else:
            indices = indices[nearest_index(len(indices), length)]
    return indices


@dataclass(frozen=True)
class InputSpec:
    """How a system wants to see a photo when nothing is random: in evaluation and prediction.

    `squash` resizes to `size` without keeping the aspect. `short_edge` makes the shorter side min(size) and the longer
    one at most max(size). `letterbox` fits the photo into `size` and centres it. The result is filled up to multiples
    of `divisor` at the bottom and the right, with `fill`. `via` is an intermediate (short, longest long) edge that a
    published recipe goes through. `needs_object` says that predictions are about one given object and its mask.
    """

    size: Size
    resize: Resize = "squash"
    divisor: int = 1
    fill: tuple[int, int, int] = (0, 0, 0)
    via: Size | None = None
    needs_object: bool = False

    def __post_init__(self) -> None:
        if self.resize not in get_args(Resize):
            raise ValueError(f"resize={self.resize!r} is not one of {get_args(Resize)}")
        if min(*self.size, self.divisor) < 1:
            raise ValueError(f"size={self.size} and divisor={self.divisor} must be positive")

    def geometry(self, height: int, width: int) -> Geometry:
        """Where the pixels of a photo of this height and width go."""
        whole = (0, 0, width, height)
        via = () if self.via is None else (short_edge(height, width, *self.via),)
        if self.resize == "squash":
            return Geometry(whole, (*via, self.size))
        if self.resize == "short_edge":
            inside = short_edge(height, width, min(self.size), max(self.size))
            canvas = (-(-inside[0] // self.divisor) * self.divisor, -(-inside[1] // self.divisor) * self.divisor)
            return Geometry(whole, (*via, inside), canvas=canvas, fill=self.fill)
        inside, offset = letterbox(height, width, self.size)
        return Geometry(whole, (*via, inside), canvas=self.size, offset=offset, fill=self.fill)


def letterbox(height: int, width: int, size: Size) -> tuple[Size, tuple[int, int]]:
    """Size of a picture that fits into `size`, and top and left of it in the middle."""
    scale = min(size[0] / height, size[1] / width)
    inside = (max(1, round(height * scale)), max(1, round(width * scale)))
    return inside, ((size[0] - inside[0]) // 2, (size[1] - inside[1]) // 2)


def short_edge(height: int, width: int, shorter: int, longest: int | None) -> Size:
    """detectron2's ResizeShortestEdge: the shorter side becomes `shorter`, the longer one at most `longest`."""
    scale = shorter / min(height, width)
    if longest is not None and scale * max(height, width) > longest:
        scale = longest / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


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


def to_tensor(image: Image.Image, *, channel_order: ChannelOrder = "rgb") -> UInt8[Tensor, "3 H W"]:
    """The photo as uint8 channels-first tensor; "bgr" reverses the channels (official training)."""
    array = np.asarray(image)
    if channel_order == "bgr":
        array = array[:, :, ::-1]
    return torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))  # a copy: Pillow's pixels are read-only
