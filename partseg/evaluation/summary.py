"""Counts to scores: the means that tables show, and everything per class, as plain numbers in percent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from partseg.evaluation import boundary, metrics
from partseg.evaluation.evaluator import Counts
from partseg.vocabulary import Vocabulary


@dataclass(frozen=True)
class Measure:
    """One per-class quantity and how it is averaged: a value per class (NaN: none), and the classes that count.

    A value more than classes is background's, which the mean over unseen classes then includes (boundary.D2_RULES).
    """

    name: str
    values: np.ndarray
    in_truth: np.ndarray

    @property
    def of_class(self) -> np.ndarray:
        """The value to show for each class: NaN where the truth has nothing to measure, also when it was predicted."""
        return np.where(self.in_truth, self.values, np.nan)


def measures(counts: Counts) -> dict[str, Measure]:
    """Per-class quantities of one evaluator by name: "iou", "recall", "boundary_iou" and boundary.D2_RULES."""
    in_truth = metrics.present(counts.confusion)
    found = {
        "iou": Measure("mIoU", metrics.iou(counts.confusion), in_truth),
        "recall": Measure("recall", metrics.recall(counts.confusion), in_truth),
    }
    if counts.bands is not None:
        found["boundary_iou"] = Measure("boundary_iou", boundary.band_iou(counts.bands), counts.bands[1] > 0)
    for rule, differences in counts.differences.items():
        values = differences.iou()
        # these evaluators average over every value that occurs, in the truth or in the prediction
        found[rule] = Measure(rule, values, ~np.isnan(values))
    return {key: found[key] for key in found if key in counts.metrics or key == "iou"}


def split_means(counts: Counts, vocabulary: Vocabulary) -> dict[str, dict[str, metrics.Split]]:
    """measure -> averaging rule -> {all, seen, unseen, harmonic} in percent; recall and D2_RULES have one rule."""
    means: dict[str, dict[str, metrics.Split]] = {}
    for key, measure in measures(counts).items():
        rules = metrics.AVERAGINGS if key in ("iou", "boundary_iou") else ("present",)
        means[key] = {
            rule: _percent_split(metrics.split(measure.values, measure.in_truth, vocabulary, averaging=rule))
            for rule in rules
        }
    return means


def flat_scores(counts: Counts, vocabulary: Vocabulary) -> dict[str, float | None]:
    """`mIoU`, `mIoU_seen`, `mIoU_unseen`, `mIoU_harmonic` and so on in percent, by the evaluator's averaging rule."""
    scores: dict[str, float | None] = {}
    means = split_means(counts, vocabulary)
    for key, measure in measures(counts).items():
        shown = means[key].get(counts.averaging, means[key]["present"])
        scores[measure.name] = shown["all"]
        scores |= {f"{measure.name}_{part}": shown[part] for part in ("seen", "unseen", "harmonic")}
    if "accuracy" in counts.metrics:
        scores["fwIoU"] = percent(metrics.fw_iou(counts.confusion))
        scores["mACC"] = percent(metrics.mean_accuracy(counts.confusion))
        scores["pACC"] = percent(metrics.pixel_accuracy(counts.confusion))
    return scores


def flat(counts: Mapping[str, Counts], vocabulary: Vocabulary) -> dict[str, float | None]:
    """All scores of all evaluators as `<evaluator>/<score>`."""
    return {f"{name}/{key}": value for name, c in counts.items() for key, value in flat_scores(c, vocabulary).items()}


def percent(value: float | None) -> float | None:
    """100 times the share; None stays."""
    return None if value is None or np.isnan(value) else 100 * float(value)


def _percent_split(split: metrics.Split) -> metrics.Split:
    return {key: percent(value) for key, value in split.items()}
