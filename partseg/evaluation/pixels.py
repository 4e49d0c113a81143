"""Pixels under a protocol: the confusion matrix over a data set, and boundary counts. Integers only.

The confusion matrix lives on the device of the scores; boundaries are counted on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from partseg.evaluation import boundary
from partseg.evaluation.counts import Counts
from partseg.evaluation.evaluator import Answer
from partseg.evaluation.metrics import Averaging, check_averaging
from partseg.evaluation.protocols import Protocol, Truth
from partseg.labels import IGNORE_LABEL
from partseg.structures import Sample
from partseg.utils import distributed
from partseg.vocabulary.names import Vocabulary

METRICS = ("iou", "accuracy", "recall", "with_background", "boundary_iou", *boundary.D2_RULES)


class PixelEvaluator:
    """Counts of one protocol; `metrics` names what is computed (see METRICS), `averaging` what the tables show."""

    words: Literal["vocabulary"] = "vocabulary"

    def __init__(
        self,
        protocol: Protocol,
        *,
        metrics: Sequence[str] = ("iou", "accuracy", "recall"),
        averaging: Averaging = "present",
    ) -> None:
        unknown = sorted(set(metrics) - set(METRICS))
        if unknown:
            raise ValueError(f"evaluator metrics {unknown} do not exist; there are {list(METRICS)}")
        check_averaging(averaging)
        self.protocol = protocol
        self.objects = protocol.objects
        self.metrics = tuple(metrics)
        self.averaging: Averaging = averaging
        self._d2_rules = [rule for rule in boundary.D2_RULES if rule in metrics]

    def reset(self, vocabulary: Vocabulary, device: torch.device | str = "cpu") -> None:
        """Start counting for a vocabulary; the confusion matrix is kept on `device`."""
        classes = len(vocabulary)
        if self._d2_rules and classes > boundary.LARGEST_D2:
            raise ValueError(
                f"{self._d2_rules[0]} restates an evaluator of at most {boundary.LARGEST_D2} classes, "
                f"{vocabulary.name!r} has {classes}; remove it from the evaluator's metrics"
            )
        self.vocabulary = vocabulary
        self._confusion = torch.zeros((classes + 2) * (classes + 1), dtype=torch.int64, device=device)
        self._images = torch.zeros(2, dtype=torch.int64, device=device)
        self._bands = torch.zeros(3, classes, dtype=torch.int64)
        self._differences = torch.zeros(len(self._d2_rules), classes + 1, classes + 1, dtype=torch.int64)

    def process(self, answer: Answer, sample: Sample) -> Int[Tensor, "h w"]:
        """Count the labels that the protocol reads from a prediction, and return them."""
        labels = self.protocol.labels(answer.labels, sample, self.vocabulary)
        self.count(labels, sample)
        return labels

    def count(self, labels: Int[Tensor, "h w"], sample: Sample) -> None:
        """Count one label map (0..K-1, K background) against the sample, both on the same device."""
        truth = self.protocol.truth(sample, self.vocabulary)
        classes = len(self.vocabulary)
        # pixels that do not count go to one row more, which is cheaper than selecting the others
        index = (truth.labels.clamp(max=classes + 1) * (classes + 1) + labels).flatten()
        one = torch.ones((), dtype=torch.int64, device=index.device)
        weight = one.expand(len(index)) if truth.weight is None else truth.weight.flatten().long()
        self._confusion.index_add_(0, index, weight)  # as fast as bincount, which makes the host wait for a GPU
        self._images[0] += 1
        self._images[1] += truth.num_dropped
        if "boundary_iou" in self.metrics or self._d2_rules:
            self._process_boundaries(labels.cpu().numpy(), sample, truth)

    def _process_boundaries(self, labels: np.ndarray, sample: Sample, truth: Truth) -> None:
        classes = len(self.vocabulary)
        target = truth.labels.cpu().numpy()
        if "boundary_iou" in self.metrics:
            counted = target != IGNORE_LABEL
            if truth.weight is not None:
                counted &= truth.weight.cpu().numpy() > 0
            counts = boundary.count_bands(
                np.where(counted, target, classes), np.where(counted, labels, classes), classes
            )
            self._bands += torch.from_numpy(counts)
        for rule, total in zip(self._d2_rules, self._differences):
            counts = boundary.confuse_differences(
                np.where(target == IGNORE_LABEL, classes, target),
                labels,
                sample.object.cpu().numpy(),
                classes,
                rule=rule,
                given_objects=self.objects == "truth",
            )
            total += torch.from_numpy(counts)

    def evaluate(self) -> Counts:
        """Counts of all processes; every process must call it."""
        classes = len(self.vocabulary)
        confusion = distributed.reduce_sum(self._confusion)[: (classes + 1) ** 2].view(classes + 1, classes + 1)
        num_images, num_dropped = distributed.reduce_sum(self._images).tolist()
        bands = distributed.reduce_sum(self._bands).numpy() if "boundary_iou" in self.metrics else None
        differences = distributed.reduce_sum(self._differences).numpy()
        background = {"boundary_iou_d2_labelled": self.objects != "truth"}
        return Counts(
            vocabulary=self.vocabulary,
            protocol=self.protocol.name,
            averaging=self.averaging,
            metrics=self.metrics,
            confusion=confusion.cpu().numpy(),
            num_images=num_images,
            num_dropped=num_dropped,
            bands=bands,
            differences={
                rule: boundary.Differences(matrix, background.get(rule, False))
                for rule, matrix in zip(self._d2_rules, differences)
            },
        )
