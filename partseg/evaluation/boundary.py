"""Boundary IoU: per-class bands (Cheng et al. 2021), and what two public evaluators count, to compare with Table 6.

Both accumulate integers over the data set, which processes can sum; docs/protocols.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from scipy.ndimage import maximum_filter1d, minimum_filter1d

RATIO = 0.02
"""Width of the band as a share of the image diagonal."""

LARGEST_D2 = 254
"""detectron2 keeps labels in 8 bits for this and skips data sets with 255 or more classes."""

D2_RULES = ("boundary_iou_d2", "boundary_iou_d2_labelled")
"""The authors' evaluator at two commits. `boundary_iou_d2` (d75a599): a given object's mask cuts the prediction, and
background is no class. `boundary_iou_d2_labelled` (d92df57): the labelled pixels cut it under every protocol, and where
no object is given background is one more class."""


def distance(size: Sequence[int]) -> int:
    """Width of the band in pixels, at least 1, for an image of (height, width)."""
    return max(1, round(RATIO * math.hypot(*size)))


def band(labels: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels in the inner band of their own class: mask minus its erosion by `distance`, for all classes at once.

    A pixel survives the erosion of its class exactly when the square of side 2 d + 1 around it lies inside the image
    and holds one label only, that is, when its minimum equals its maximum.
    """
    d = distance(labels.shape)
    low = high = labels
    for axis in (0, 1):
        low = minimum_filter1d(low, 2 * d + 1, axis, mode="nearest")
        high = maximum_filter1d(high, 2 * d + 1, axis, mode="nearest")
    inside = low == high
    eroded = np.zeros_like(inside)
    eroded[d : inside.shape[0] - d, d : inside.shape[1] - d] = inside[d : inside.shape[0] - d, d : inside.shape[1] - d]
    return ~eroded


def count_bands(
    truth: Int[np.ndarray, "h w"], labels: Int[np.ndarray, "h w"], num_classes: int
) -> Int[np.ndarray, "3 K"]:
    """Per class: pixels in both bands, in the truth's band, in the prediction's band; ids >= K are no class."""
    in_truth, in_labels = band(truth), band(labels)
    both = in_truth & in_labels & (truth == labels)
    counted = [np.bincount(a, minlength=num_classes)[:num_classes] for a in (truth[both], truth[in_truth])]
    return np.stack([*counted, np.bincount(labels[in_labels], minlength=num_classes)[:num_classes]])


def band_iou(counts: Int[np.ndarray, "3 K"]) -> np.ndarray:
    """float64 [K] IoU of the accumulated bands, NaN for classes in neither."""
    both, truth, labels = counts
    union = truth + labels - both
    return np.divide(both, union, out=np.full(len(both), np.nan), where=union > 0)


def grey_difference(labels: Int[np.ndarray, "h w"]) -> np.ndarray:
    """detectron2's "boundary": the label map minus its grey-value erosion by `distance`, zeros around the image."""
    d = distance(labels.shape)
    eroded = labels
    for axis in (0, 1):
        eroded = minimum_filter1d(eroded, 2 * d + 1, axis, mode="constant", cval=0)
    return labels - eroded


@dataclass(frozen=True)
class Differences:
    """Confusion [truth, prediction] of grey differences read as class ids; `background`: id K counts as a class."""

    confusion: Int[np.ndarray, "K+1 K+1"]
    background: bool

    def iou(self) -> np.ndarray:
        """float64 [K], or [K+1] with background: IoU of the values read as classes, NaN for those that do not occur."""
        counted = self.confusion if self.background else self.confusion[:-1, :-1]
        hit = counted.diagonal()
        union = counted.sum(0) + counted.sum(1) - hit
        return np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)


def confuse_differences(
    truth: Int[np.ndarray, "h w"],
    labels: Int[np.ndarray, "h w"],
    objects: Int[np.ndarray, "h w"],
    num_classes: int,
    *,
    rule: str,
    given_objects: bool,
) -> Int[np.ndarray, "K+1 K+1"]:
    """Confusion of grey differences by one of D2_RULES, one record per object of the image.

    A record's truth is K outside the object; its prediction is K where the rule cuts it. `truth` holds K where nothing
    is labelled.
    """
    total = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for object_id in np.unique(objects[objects < num_classes]):
        inside = objects == object_id
        target = np.where(inside, truth, num_classes)
        if rule == "boundary_iou_d2_labelled":
            shown = np.where(target < num_classes, labels, num_classes)
        else:
            shown = np.where(inside, labels, num_classes) if given_objects else labels
        index = grey_difference(target) * (num_classes + 1) + grey_difference(shown)
        total += np.bincount(index.ravel(), minlength=total.size).reshape(total.shape)
    return total
