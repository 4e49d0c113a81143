"""Phrases: how well the mask of each is found. Mean and overall IoU, and the share of phrases above thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from partseg.evaluation.evaluator import Answer, Objects
from partseg.evaluation.metrics import flat, harmonic, percent
from partseg.structures import Sample
from partseg.utils import distributed
from partseg.vocabulary.names import Vocabulary

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
SMALL = 0.01
"""Masks of less than this share of the picture are also reported apart."""


class Counted(NamedTuple):
    """One phrase: its picture, place and text, the object-part that it is about (-1: none), and numbers of pixels."""

    name: str
    place: int
    text: str
    label: int
    both: int
    either: int
    truth: int
    picture: int

    @property
    def iou(self) -> float:
        """1 where both masks are empty."""
        return self.both / self.either if self.either else 1.0


@dataclass(frozen=True)
class ReferringResult:
    """What was counted, in the order of image names."""

    counted: tuple[Counted, ...]
    vocabulary: Vocabulary

    def scores(self) -> dict[str, float | None]:
        """In percent, None where there is nothing to average:

        mean_IoU        over phrases; with _seen, _unseen and _harmonic for phrases that are about an object-part
        overall_IoU     all pixels together, the "oIoU" of later papers; never to be compared with mean_IoU
        P@0.5 to P@0.9  share of phrases whose IoU exceeds the number
        category_IoU    mean over object-parts of the mean over their phrases
        small_IoU       mean_IoU of masks of less than 1 % of the picture
        best_match_IoU  where a text of a picture has several targets, only the one that fits best counts
        """
        iou = np.array([row.iou for row in self.counted])
        small = np.array([row.truth < SMALL * row.picture for row in self.counted], bool)
        labels = np.array([row.label for row in self.counted], np.int64)
        seen, about = np.append(self.vocabulary.seen, False)[labels], labels >= 0
        of_seen, of_unseen = _mean(iou[seen & about]), _mean(iou[~seen & about])
        split = {"all": _mean(iou), "seen": of_seen, "unseen": of_unseen, "harmonic": harmonic(of_seen, of_unseen)}
        best: dict[tuple[str, str], float] = {}
        for row in self.counted:
            best[row.name, row.text] = max(row.iou, best.get((row.name, row.text), 0.0))
        values: dict[str, float | None] = {
            **flat("mean_IoU", split),  # type: ignore[arg-type]
            "overall_IoU": self._overall(),
            **{f"P@{x}": _mean((iou > x).astype(float)) for x in THRESHOLDS},
            "category_IoU": _mean(np.array([_mean(iou[labels == each]) for each in np.unique(labels[about])])),
            "small_IoU": _mean(iou[small]),
            "best_match_IoU": _mean(np.array(list(best.values()))),
        }
        return {name: percent(value) for name, value in values.items()}

    def _overall(self) -> float | None:
        if not self.counted:
            return None
        either = sum(row.either for row in self.counted)
        return sum(row.both for row in self.counted) / either if either else 1.0

    def describe(self) -> dict[str, Any]:
        """The entry in results.json."""
        return {
            "kind": "referring",
            "num_images": len({row.name for row in self.counted}),
            "num_phrases": len(self.counted),
            "num_small": sum(row.truth < SMALL * row.picture for row in self.counted),
            "metrics": self.scores(),
            "categories": [self._category(label) for label in sorted({row.label for row in self.counted} - {-1})],
        }

    def _category(self, label: int) -> dict[str, Any]:
        owner, part = self.vocabulary.pairs[label]
        iou = np.array([row.iou for row in self.counted if row.label == label])
        return {
            "object": owner,
            "part": part,
            "seen": bool(self.vocabulary.seen[label]),
            "num_phrases": len(iou),
            "mean_IoU": percent(_mean(iou)),
        }


class ReferringEvaluator:
    """Masks of phrases against the annotated ones; every wording of a phrase counts on its own."""

    words: Literal["phrases"] = "phrases"
    objects: Objects = "none"

    def reset(self, vocabulary: Vocabulary, device: torch.device | str = "cpu") -> None:
        """Start counting; the vocabulary names the categories."""
        self._vocabulary = vocabulary
        self._counted: list[Counted] = []

    def process(self, answer: Answer, sample: Sample) -> None:
        """Count the phrases of one image."""
        for place, (phrase, mask) in enumerate(zip(sample.phrases, answer.phrases.masks(), strict=True)):
            self._counted.append(_count(sample.name, place, phrase.text, phrase.label, phrase.mask, mask))

    def evaluate(self) -> ReferringResult:
        """Counts of all processes."""
        rows = sorted(row for part in distributed.gather_objects(self._counted) for row in part)
        return ReferringResult(tuple(Counted(*row) for row in rows), self._vocabulary)


def _count(
    name: str, place: int, text: str, label: int | None, truth: Bool[torch.Tensor, "h w"], mask: torch.Tensor
) -> Counted:
    truth = truth.to(mask.device)
    both, either, size = torch.stack([(mask & truth).sum(), (mask | truth).sum(), truth.sum()]).tolist()
    return Counted(name, place, text, -1 if label is None else label, both, either, size, truth.numel())


def _mean(values: Float[np.ndarray, " n"]) -> float | None:
    return float(values.mean()) if len(values) else None
