"""What is predicted for one photo: dense scores, of the photo or object by object, instances, or a mask per phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask
from torch import Tensor

from partseg.geometry import Region, Size
from partseg.structures import INSTANCE_LEVELS, InstanceLevel, Instances


@dataclass(frozen=True)
class DenseScores:
    """Logits of one photo at network size, and the size they are to be read at (the label's own, or the photo's).

    Background is the last channel. `object` is None for systems without an object head. `region` is the part of the
    logits, in their own pixels, that the photo fills; None: all of it.
    """

    object_part: Float[Tensor, "K+1 H W"]
    object: Float[Tensor, "O+1 H W"] | None
    size: Size
    region: Region | None = None

    def cropped(self) -> DenseScores:
        """The same scores without what lies outside the photo."""
        if self.region is None:
            return self
        top, left, height, width = self.region
        rows, columns = slice(top, top + height), slice(left, left + width)
        objects = None if self.object is None else self.object[:, rows, columns]
        return DenseScores(self.object_part[:, rows, columns], objects, self.size)


@dataclass(frozen=True)
class Crop:
    """Scores of one object's own parts, ascending, and background on a cut-out of the photo.

    `box` (left, top, right, bottom) is in pixels of the size that the prediction is read at; the scores' size is its.
    """

    box: tuple[int, int, int, int]
    scores: DenseScores


@dataclass(frozen=True)
class Look:
    """An object map, and the crop of every object that is in it by object id."""

    objects: Int[Tensor, "h w"]
    crops: Mapping[int, Crop]


@dataclass(frozen=True)
class ObjectFirstScores:
    """Parts of one photo looked for in one object at a time: a look for each object map that a protocol may ask about.

    `found` is the look at the objects that the system found itself; None where nobody asks for them.
    """

    found: Look | None
    told: tuple[Look, ...]
    size: Size

    def look(self, objects: Int[Tensor, "h w"]) -> Look:
        """The look at an object map; ValueError for one that the predictor was not shown."""
        for each in (self.found, *self.told):
            if each is not None and torch.equal(each.objects, objects):
                return each
        raise ValueError("predictor.object_first cut out other objects than this protocol asks about")


@dataclass(frozen=True)
class PhraseScores:
    """One logit map per phrase at network size; the mask is where the upsampled logit exceeds `threshold`."""

    logits: Float[Tensor, "E H W"]
    size: Size
    region: Region | None = None
    threshold: float = 0.0

    def masks(self) -> Bool[Tensor, "E h w"]:
        """One mask per phrase at the photo's size."""
        logits = self.logits
        if self.region is not None:
            top, left, height, width = self.region
            logits = logits[:, top : top + height, left : left + width]
        full = F.interpolate(logits.float()[None], size=self.size, mode="bilinear", align_corners=False)[0]
        return full > self.threshold

    def scores(self) -> Float[Tensor, " E"]:
        """Mean probability over each mask, at network size; the highest one of a phrase without a mask."""
        logits = self.logits.float().flatten(1)
        inside = (logits > self.threshold).float()
        mean = (logits.sigmoid() * inside).sum(1) / inside.sum(1).clamp(min=1)
        return torch.where(inside.any(1), mean, logits.sigmoid().amax(1))


@dataclass(frozen=True)
class Segments:
    """Instances found in one photo, best first: COCO RLE masks at the photo's size, boxes (left, top, right, bottom).

    `level` indexes INSTANCE_LEVELS. `label` is an object-part id or a position in `label_objects`, -1 for a segment
    without a name. `parent` is the position of a part's object among these segments, or -1. `levels` are those that the
    system looks for, whether it found some in this photo or not.
    """

    rles: tuple[Mapping[str, Any], ...]
    boxes: Float[np.ndarray, "N 4"]
    scores: Float[np.ndarray, " N"]
    level: Int[np.ndarray, " N"]
    label: Int[np.ndarray, " N"]
    parent: Int[np.ndarray, " N"]
    size: Size
    levels: tuple[InstanceLevel, ...] = ("object_part",)

    def __len__(self) -> int:
        return len(self.rles)

    @property
    def areas(self) -> Int[np.ndarray, " N"]:
        """Pixels of each mask, one by one: pycocotools' area of a list overflows from the 256th on under NumPy 2."""
        return np.array([int(coco_mask.area(rle)) for rle in self.rles], np.int64)

    @classmethod
    def from_masks(
        cls,
        masks: Bool[Tensor, "N h w"],
        *,
        scores: Sequence[float] | Tensor | np.ndarray,
        boxes: Tensor | np.ndarray | None = None,
        level: Sequence[int] | Tensor | np.ndarray | None = None,
        label: Sequence[int] | Tensor | np.ndarray | None = None,
        parent: Sequence[int] | Tensor | np.ndarray | None = None,
        levels: tuple[InstanceLevel, ...] = ("object_part",),
    ) -> Segments:
        """Segments of masks at the photo's size, sorted by score; `boxes` default to those of the masks."""
        array = masks.cpu().numpy().astype(np.uint8)
        rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in array]
        values = np.asarray(torch.as_tensor(scores).cpu(), np.float64)
        order = np.argsort(-values, kind="stable")
        place = np.append(np.argsort(order), -1)  # where each segment goes; -1 stays -1
        nothing = np.full(len(order), -1)

        def column(given: Any, default: np.ndarray = nothing) -> np.ndarray:
            return default if given is None else np.asarray(torch.as_tensor(given).cpu(), np.int64)[order]

        around = boxes_of(masks) if boxes is None else np.asarray(torch.as_tensor(boxes).cpu(), np.float64)
        return cls(
            rles=tuple(rles[i] for i in order),
            boxes=around.reshape(-1, 4)[order],
            scores=values[order],
            level=column(level, np.zeros_like(nothing)),
            label=column(label),
            parent=place[column(parent)],
            size=(masks.shape[1], masks.shape[2]),
            levels=levels,
        )

    def masks(self) -> Bool[np.ndarray, "N h w"]:
        """Masks at the photo's size; makes N * h * w bytes."""
        if not self.rles:
            return np.zeros((0, *self.size), bool)
        return np.ascontiguousarray(coco_mask.decode(list(self.rles)).transpose(2, 0, 1)).astype(bool)

    def select(self, kept: Bool[np.ndarray, " N"] | Int[np.ndarray, " n"]) -> Segments:
        """The segments where `kept` is true, or at these positions; parents that are left out become -1."""
        index = np.flatnonzero(kept) if np.asarray(kept).dtype == bool else np.asarray(kept, np.int64)
        place = np.full(len(self) + 1, -1)
        place[index] = np.arange(len(index))
        arrays = {name: getattr(self, name)[index] for name in ("boxes", "scores", "level", "label")}
        rles = tuple(self.rles[i] for i in index)
        return replace(self, rles=rles, parent=place[self.parent[index]], **arrays)

    def of_level(self, level: InstanceLevel) -> Segments:
        """Segments of one level."""
        return self.select(self.level == INSTANCE_LEVELS.index(level))


Prediction = DenseScores | ObjectFirstScores | PhraseScores | Segments
"""What `System.predict` gives for each photo; `ObjectFirstScores` are what the predictor makes of dense scores."""


def boxes_of(masks: Bool[Tensor, "N h w"]) -> Float[np.ndarray, "N 4"]:
    """Boxes (left, top, right, bottom; the last two exclusive) around masks; zeros for an empty one."""
    found = np.zeros((len(masks), 4))
    for row, mask in zip(found, masks.cpu().numpy()):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            row[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return found


def as_segments(instances: Instances) -> Segments:
    """Annotated instances as perfect segments, for baselines and tests."""
    return Segments.from_masks(
        instances.masks,
        scores=torch.ones(len(instances)),
        boxes=instances.boxes,
        level=instances.level,
        label=instances.label,
        parent=instances.parent,
    )
