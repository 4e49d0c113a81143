"""Phrases: how well the mask of each is found. Mean and overall IoU, and the share of phrases above thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int

from partseg.evaluation.evaluator import Answer, Objects
from partseg.evaluation.metrics import percent
from partseg.structures import Sample
from partseg.utils import distributed
from partseg.vocabulary.names import Vocabulary

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ReferringResult:
    """Pixels per phrase, in the order of image names: in both masks, in either mask."""

    names: tuple[str, ...]
    counts: Int[np.ndarray, "E 2"]

    def scores(self) -> dict[str, float | None]:
        """`mean_IoU` over phrases, `overall_IoU` of all pixels together, and `P@0.5` to `P@0.9`, in percent.

        A phrase whose two masks are empty has the IoU 1; P@x counts phrases whose IoU exceeds x.
        """
        both, either = self.counts.T
        if not len(both):
            return dict.fromkeys(("mean_IoU", "overall_IoU", *(f"P@{x}" for x in THRESHOLDS)))
        iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)
        overall = both.sum() / either.sum() if either.sum() else 1.0
        scores = {"mean_IoU": percent(iou.mean()), "overall_IoU": percent(overall)}
        return scores | {f"P@{x}": percent((iou > x).mean()) for x in THRESHOLDS}

    def describe(self) -> dict[str, Any]:
        """The entry in results.json."""
        images = len(set(self.names))
        return {"kind": "referring", "num_images": images, "num_phrases": len(self.counts), "metrics": self.scores()}


class ReferringEvaluator:
    """Masks of phrases against the annotated ones; every wording of a phrase counts on its own."""

    words: Literal["phrases"] = "phrases"
    objects: Objects = "none"

    def reset(self, vocabulary: Vocabulary, device: torch.device | str = "cpu") -> None:
        """Start counting; phrases need no vocabulary."""
        self._counts: list[tuple[str, int, int, int]] = []

    def process(self, answer: Answer, sample: Sample) -> None:
        """Count the phrases of one image."""
        masks = answer.phrases.masks()
        for index, ((_, truth), mask) in enumerate(zip(sample.phrases, masks, strict=True)):
            truth = truth.to(mask.device)
            both, either = torch.stack([(mask & truth).sum(), (mask | truth).sum()]).tolist()
            self._counts.append((sample.name, index, both, either))

    def evaluate(self) -> ReferringResult:
        """Counts of all processes."""
        rows = sorted(row for part in distributed.gather_objects(self._counts) for row in part)
        return ReferringResult(tuple(row[0] for row in rows), np.array([row[2:] for row in rows]).reshape(-1, 2))
