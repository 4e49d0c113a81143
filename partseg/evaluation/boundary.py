"""Boundary IoU: per-class bands (Cheng et al. 2021), and the rule of detectron2's evaluator to compare with Table 6.

Both accumulate integers over the data set, which processes can sum; docs/protocols.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from scipy.ndimage import maximum_filter1d, minimum_filter1d

RATIO = 0.02
"""Width of the band as a share of the image diagonal."""

LARGEST_D2 = 254
"""detectron2 keeps labels in 8 bits for this and skips data sets with 255 or more classes."""


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


def confuse_differences(
    truth: Int[np.ndarray, "h w"],
    labels: Int[np.ndarray, "h w"],
    objects: Int[np.ndarray, "h w"],
    num_classes: int,
    *,
    given_objects: bool,
) -> Int[np.ndarray, "K+1 K+1"]:
    """Confusion [truth, prediction] of grey differences, one record per object of the image, as detectron2 counts them.

    A record's truth is K outside the object; so is its prediction when objects are given. `truth` holds K where nothing
    is labelled.
    """
    total = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for object_id in np.unique(objects[objects < num_classes]):
        inside = objects == object_id
        shown = np.where(inside, labels, num_classes) if given_objects else labels
        index = grey_difference(np.where(inside, truth, num_classes)) * (num_classes + 1) + grey_difference(shown)
        total += np.bincount(index.ravel(), minlength=total.size).reshape(total.shape)
    return total


def difference_iou(confusion: Int[np.ndarray, "K+1 K+1"]) -> np.ndarray:
    """float64 [K] IoU of the difference values 0..K-1 read as class ids, NaN for values that do not occur."""
    inner = confusion[:-1, :-1]
    hit = inner.diagonal()
    union = inner.sum(0) + inner.sum(1) - hit
    return np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
