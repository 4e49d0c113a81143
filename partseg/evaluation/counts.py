"""What a pixel protocol counted, and every score that follows from it, as plain numbers in percent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from partseg.evaluation import boundary, metrics
from partseg.evaluation.metrics import Averaging, Split, percent, percents
from partseg.vocabulary.names import Vocabulary


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


@dataclass(frozen=True)
class Counts:
    """Integers of one protocol over all processes. `confusion` is [truth, prediction]; K is background."""

    vocabulary: Vocabulary
    protocol: str
    averaging: Averaging
    metrics: tuple[str, ...]
    confusion: Int[np.ndarray, "K+1 K+1"]
    num_images: int
    num_dropped: int
    bands: Int[np.ndarray, "3 K"] | None = None
    differences: Mapping[str, boundary.Differences] = field(default_factory=dict)

    def measures(self) -> dict[str, Measure]:
        """Per-class quantities by name: "iou", "recall", "boundary_iou" and boundary.D2_RULES."""
        in_truth = metrics.present(self.confusion)
        found = {
            "iou": Measure("mIoU", metrics.iou(self.confusion), in_truth),
            "recall": Measure("recall", metrics.recall(self.confusion), in_truth),
        }
        if self.bands is not None:
            found["boundary_iou"] = Measure("boundary_iou", boundary.band_iou(self.bands), self.bands[1] > 0)
        for rule, differences in self.differences.items():
            values = differences.iou()
            # these evaluators average over every value that occurs, in the truth or in the prediction
            found[rule] = Measure(rule, values, ~np.isnan(values))
        return {key: found[key] for key in found if key in self.metrics or key == "iou"}

    def averages(self) -> dict[str, dict[str, Split]]:
        """measure -> averaging rule -> {all, seen, unseen, harmonic} in percent; recall and D2_RULES have one rule."""
        means: dict[str, dict[str, Split]] = {}
        seen = self.vocabulary.seen
        for key, measure in self.measures().items():
            rules = metrics.AVERAGINGS if key in ("iou", "boundary_iou") else ("present",)
            means[key] = {
                rule: percents(metrics.split(measure.values, measure.in_truth, seen, averaging=rule)) for rule in rules
            }
        return means

    def scores(self) -> dict[str, float | None]:
        """`mIoU`, `mIoU_seen`, `mIoU_unseen`, `mIoU_harmonic` and so on, by the evaluator's averaging rule."""
        scores: dict[str, float | None] = {}
        means = self.averages()
        for key, measure in self.measures().items():
            rule = self.averaging if self.averaging in means[key] else "present"
            scores |= metrics.flat(measure.name, means[key][rule])
        if "accuracy" in self.metrics:
            scores["fwIoU"] = percent(metrics.fw_iou(self.confusion))
            scores["mACC"] = percent(metrics.mean_accuracy(self.confusion))
            scores["pACC"] = percent(metrics.pixel_accuracy(self.confusion))
        if "with_background" in self.metrics:
            scores |= {f"{name}_with_background": percent(value) for name, value in self._with_background().items()}
        return scores

    def _with_background(self) -> dict[str, float | None]:
        """Scores in which background is a class like the others."""
        confusion = np.pad(self.confusion, (0, 1))
        return {
            "mIoU": metrics.mean(metrics.iou(confusion), metrics.present(confusion)),
            "fwIoU": metrics.fw_iou(confusion),
            "mACC": metrics.mean_accuracy(confusion),
        }

    def describe(self) -> dict[str, Any]:
        """The entry in results.json."""
        in_truth, iou = metrics.present(self.confusion), metrics.iou(self.confusion)
        of_class = self.measures()["iou"].of_class
        rows, columns = self.confusion.nonzero()
        names = self.vocabulary.object_parts
        return {
            "kind": "pixels",
            "protocol": self.protocol,
            "averaging": self.averaging,
            "num_images": self.num_images,
            "num_pixels": int(self.confusion.sum()),
            "num_dropped": self.num_dropped,
            "metrics": self.scores() | {f"IoU/{name}": percent(value) for name, value in zip(names, of_class)},
            "averages": self.averages(),
            "without_background_predictions": self._without_background_predictions(),
            "classes": self._classes(),
            "objects": percents(metrics.by_object(iou, in_truth, self.vocabulary)),
            "parts": percents(metrics.by_part(iou, in_truth, self.vocabulary)),
            "confusion": np.stack([rows, columns, self.confusion[rows, columns]], 1).tolist(),
        }

    def _classes(self) -> list[dict[str, Any]]:
        truth, predicted = self.confusion.sum(1), self.confusion.sum(0)
        per_class = self.measures()
        return [
            {
                "object": owner,
                "part": part,
                "seen": bool(self.vocabulary.seen[k]),
                "num_pixels": int(truth[k]),
                "num_predicted": int(predicted[k]),
                **{key: percent(float(measure.of_class[k])) for key, measure in per_class.items()},
            }
            for k, (owner, part) in enumerate(self.vocabulary.pairs)
        ]

    def _without_background_predictions(self) -> dict[str, Split]:
        kept = metrics.without_background_predictions(self.confusion)
        iou, in_truth, seen = metrics.iou(kept), metrics.present(kept), self.vocabulary.seen
        return {rule: percents(metrics.split(iou, in_truth, seen, averaging=rule)) for rule in metrics.AVERAGINGS}
