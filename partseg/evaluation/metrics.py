"""Metrics as pure functions of one confusion matrix int64 [K+1, K+1]: [truth, prediction], background last.

Values are shares (0..1), NaN where a class has no value, None where a mean has nothing to average.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from partseg.vocabulary.names import Vocabulary

Averaging = Literal["present", "present_or_predicted", "nonzero"]
AVERAGINGS: tuple[Averaging, ...] = get_args(Averaging)

Split = dict[str, float | None]
"""Means with the keys "all", "seen", "unseen" and "harmonic"."""


def iou(confusion: Int[np.ndarray, "K+1 K+1"]) -> Float[np.ndarray, " K"]:
    """TP / (TP + FP + FN) per class; NaN for classes that are neither in the truth nor predicted."""
    hit = confusion.diagonal()
    return _share(hit, confusion.sum(0) + confusion.sum(1) - hit)[:-1]


def recall(confusion: Int[np.ndarray, "K+1 K+1"]) -> Float[np.ndarray, " K"]:
    """TP / (TP + FN) per class; NaN for classes absent from the truth."""
    return _share(confusion.diagonal(), confusion.sum(1))[:-1]


def present(confusion: Int[np.ndarray, "K+1 K+1"]) -> Bool[np.ndarray, " K"]:
    """Classes that occur in the truth."""
    return confusion.sum(1)[:-1] > 0


def mean(
    values: Float[np.ndarray, " K"],
    in_truth: Bool[np.ndarray, " K"],
    group: Bool[np.ndarray, " K"] | None = None,
    *,
    averaging: Averaging = "present",
) -> float | None:
    """Mean over the classes of `group` by one of the rules in circulation; `values` is NaN for classes without one.

    `present`: classes in the truth. `present_or_predicted`: their sum over the number of classes in the truth or
    predicted. `nonzero`: classes with a value above 0. None when the group has no class that could be averaged.
    """
    check_averaging(averaging)
    group = np.ones(len(values), bool) if group is None else group
    kept = in_truth & group
    if not kept.any():
        return None
    total = float(values[kept].sum())
    if averaging == "present":
        return total / int(kept.sum())
    if averaging == "present_or_predicted":
        return total / int((group & ~np.isnan(values)).sum())
    above = group & (np.nan_to_num(values) > 0)
    return float(values[above].mean()) if above.any() else 0.0


def harmonic(seen: float | None, unseen: float | None) -> float | None:
    """2 s u / (s + u), 0 when both are 0, None without one of them."""
    if seen is None or unseen is None:
        return None
    return 2 * seen * unseen / (seen + unseen) if seen + unseen > 0 else 0.0


def split(
    values: Float[np.ndarray, " K"],
    in_truth: Bool[np.ndarray, " K"],
    seen: Bool[np.ndarray, " K"],
    *,
    averaging: Averaging = "present",
) -> Split:
    """Means over all, seen and unseen classes and the harmonic mean of the last two.

    A value more than classes in `seen` is background's, and not seen.
    """
    is_seen = np.append(seen, False)[: len(values)]
    of_seen = mean(values, in_truth, is_seen, averaging=averaging)
    of_unseen = mean(values, in_truth, ~is_seen, averaging=averaging)
    return {
        "all": mean(values, in_truth, averaging=averaging),
        "seen": of_seen,
        "unseen": of_unseen,
        "harmonic": harmonic(of_seen, of_unseen),
    }


def flat(name: str, means: Split) -> dict[str, float | None]:
    """`name`, `name_seen`, `name_unseen` and `name_harmonic`, as logs and results.json spell a split."""
    return {name: means["all"]} | {f"{name}_{part}": means[part] for part in ("seen", "unseen", "harmonic")}


def percent(value: float | None) -> float | None:
    """100 times the share; None for None and NaN."""
    return None if value is None or np.isnan(value) else 100 * float(value)


def percents(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """`percent` of every value."""
    return {key: percent(value) for key, value in values.items()}


def fw_iou(confusion: Int[np.ndarray, "K+1 K+1"]) -> float | None:
    """IoU weighted with each class's share of the labelled pixels (background excluded)."""
    pixels = confusion.sum(1)[:-1]
    return float(np.nansum(iou(confusion) * pixels) / pixels.sum()) if pixels.any() else None


def mean_accuracy(confusion: Int[np.ndarray, "K+1 K+1"]) -> float | None:
    """Mean recall over the classes that occur in the truth."""
    return mean(recall(confusion), present(confusion))


def pixel_accuracy(confusion: Int[np.ndarray, "K+1 K+1"]) -> float | None:
    """Share of the counted pixels that are right, background pixels included where a protocol counts them."""
    total = int(confusion.sum())
    return int(confusion.trace()) / total if total else None


def by_object(
    values: Float[np.ndarray, " K"], in_truth: Bool[np.ndarray, " K"], vocabulary: Vocabulary
) -> dict[str, float | None]:
    """Mean over the parts of each object that occur in the truth."""
    return _by(values, in_truth, vocabulary.objects, vocabulary.object_of)


def by_part(
    values: Float[np.ndarray, " K"], in_truth: Bool[np.ndarray, " K"], vocabulary: Vocabulary
) -> dict[str, float | None]:
    """Mean over the object-parts of each part name that occur in the truth (Table 7: eye, neck, leg)."""
    return _by(values, in_truth, vocabulary.parts, vocabulary.part_of)


def without_background_predictions(confusion: Int[np.ndarray, "K+1 K+1"]) -> Int[np.ndarray, "K+1 K+1"]:
    """The matrix of evaluators that leave out labelled pixels predicted as background (detectron2, OV-PARTS).

    There such a pixel is no miss, so the fewer pixels a model dares to label the better its score; for comparison only.
    """
    kept = confusion.copy()
    kept[:, -1] = 0
    return kept


def check_averaging(averaging: str) -> None:
    """ValueError for an averaging rule that does not exist."""
    if averaging not in AVERAGINGS:
        raise ValueError(f"averaging={averaging!r} is not one of {list(AVERAGINGS)}")


def _by(
    values: np.ndarray, in_truth: np.ndarray, names: Iterable[str], group_of: np.ndarray
) -> dict[str, float | None]:
    return {name: mean(values, in_truth, group_of == i) for i, name in enumerate(names)}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
