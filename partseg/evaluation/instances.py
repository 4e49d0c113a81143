"""Instances: COCO average precision of masks and boxes, with or without class names, through pycocotools.

Every process keeps its images' annotations and segments; one of them runs COCOeval over all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from operator import add
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from partseg.evaluation import metrics
from partseg.evaluation.average_precision import IOU_TYPES, Precision, Scored, precisions
from partseg.evaluation.evaluator import Answer, Objects
from partseg.prediction import as_segments
from partseg.structures import INSTANCE_LEVELS, InstanceLevel, Sample
from partseg.utils import distributed
from partseg.vocabulary.names import Vocabulary

PREFIX = {"masks": "", "boxes": "box_"}
PART_MEANS = {"AP": "AP_opart", "AP50": "AP50_opart"}
"""Means over part names of the mean over each name's objects: PACO's AP^opart, which VLPart calls its AP on PACO."""


@dataclass(frozen=True)
class Coverage:
    """Annotated objects of a test set, how many were shown at all, and how many with an IoU of 0.5 or more.

    `whole_pictures` counts pictures that are one object from edge to edge, which tells a system nothing.
    """

    objects: int = 0
    shown: int = 0
    shown_well: int = 0
    whole_pictures: int = 0

    @classmethod
    def of(cls, truth: Int[Tensor, "h w"], given: Int[Tensor, "h w"], num_objects: int) -> Coverage:
        """Of one picture: every object id of the annotated map against the same id of the map that was shown."""
        ids = truth[truth < num_objects].unique().tolist()
        overlaps = [float(((truth == i) & (given == i)).sum() / ((truth == i) | (given == i)).sum()) for i in ids]
        whole = bool((given == given.flatten()[0]).all()) and int(given.flatten()[0]) < num_objects
        return cls(len(ids), sum(iou > 0 for iou in overlaps), sum(iou >= 0.5 for iou in overlaps), int(whole))

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class InstanceResult:
    """What COCOeval measured. `found` maps "masks"/"boxes" to per-class precision.

    `groups` holds the same for "all", "seen" and "unseen" when there are no classes: the annotations of the other group
    are then neither hit nor missed.
    """

    level: InstanceLevel
    vocabulary: Vocabulary
    class_agnostic: bool
    max_detections: int
    num_images: int
    num_instances: np.ndarray
    num_predictions: np.ndarray
    found: Mapping[str, Precision] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, Precision]] = field(default_factory=dict)
    coverage: Coverage | None = None

    def scores(self) -> dict[str, float | None]:
        """`AP`, `AP50`, `AP75`, `AR` of masks and, as `box_AP` and so on, of boxes, with their splits, in percent."""
        scores: dict[str, float | None] = {}
        for kind, precision in self.found.items():
            for score in precision.names:
                scores |= metrics.flat(PREFIX[kind] + score, metrics.percents(self._split(kind, precision, score)))
        if self.level == "object_part" and not self.class_agnostic:
            scores |= {
                PREFIX[kind] + PART_MEANS[score]: self._over_parts(kind, score)
                for kind in self.found
                for score in PART_MEANS
            }
        return scores

    def _over_parts(self, kind: str, score: str) -> float | None:
        """Percent."""
        means = metrics.by_part(self.found[kind][score], self.num_instances > 0, self.vocabulary)
        known = [value for value in means.values() if value is not None]
        return metrics.percent(float(np.mean(known))) if known else None

    def _split(self, kind: str, precision: Precision, score: str) -> metrics.Split:
        if not self.class_agnostic:
            return metrics.split(precision[score], self.num_instances > 0, _seen(self.vocabulary, self.level))
        values = {name: float(found[kind][score][0]) for name, found in self.groups.items()}
        known = {name: None if np.isnan(value) else value for name, value in values.items()}
        return {
            "all": known["all"],
            "seen": known["seen"],
            "unseen": known["unseen"],
            "harmonic": metrics.harmonic(known["seen"], known["unseen"]),
        }

    def describe(self) -> dict[str, Any]:
        """The entry in results.json."""
        entry: dict[str, Any] = {
            "kind": "segments" if self.class_agnostic else "instances",
            "level": self.level,
            "max_detections": self.max_detections,
            "num_images": self.num_images,
            "num_instances": int(self.num_instances.sum()),
            "num_predictions": int(self.num_predictions.sum()),
            "metrics": self.scores(),
        }
        if self.coverage is not None:
            entry["objects_given"] = asdict(self.coverage)
        if self.class_agnostic:
            return entry
        entry["classes"] = self._classes()
        in_truth = self.num_instances > 0
        if self.level == "object_part" and "masks" in self.found:
            values = self.found["masks"]["AP"]
            entry["objects"] = metrics.percents(metrics.by_object(values, in_truth, self.vocabulary))
            entry["parts"] = metrics.percents(metrics.by_part(values, in_truth, self.vocabulary))
        return entry

    def _classes(self) -> list[dict[str, Any]]:
        names: Sequence[tuple[str, str | None]] = self.vocabulary.pairs
        if self.level == "object":
            names = [(name, None) for name in self.vocabulary.label_objects]
        seen = _seen(self.vocabulary, self.level)
        return [
            {
                "object": owner,
                "part": part,
                "seen": bool(seen[k]),
                "num_instances": int(self.num_instances[k]),
                "num_predictions": int(self.num_predictions[k]),
                **{
                    PREFIX[kind] + score: metrics.percent(float(precision[score][k]))
                    for kind, precision in self.found.items()
                    for score in precision.names
                },
            }
            for k, (owner, part) in enumerate(names)
        ]


@dataclass(frozen=True)
class _Image(Scored):
    coverage: Coverage | None = None


class InstanceEvaluator:
    """Average precision of one level's instances.

    `kinds` are "masks" and "boxes". `class_agnostic` asks only whether segments are found, not what they are called.
    Instances that a test list does not count are neither hit nor missed (COCO's crowd rule). Where a data set says
    which classes were looked for (LVIS, PACO), detections of others in that image do not count, nor false ones of
    classes that are not all outlined: LVIS's federated rule. `recall_at` adds the recall at IoU .50 of so many per
    image, and `proposals` scores the regions that a system proposes before it names them.
    """

    def __init__(
        self,
        *,
        level: InstanceLevel = "object_part",
        kinds: Sequence[Literal["masks", "boxes"]] = ("masks", "boxes"),
        class_agnostic: bool = False,
        max_detections: int = 100,
        objects: Objects = "none",
        recall_at: Sequence[int] = (),
        proposals: bool = False,
    ) -> None:
        if level not in INSTANCE_LEVELS:
            raise ValueError(f"evaluator level={level!r} is not one of {list(INSTANCE_LEVELS)}")
        unknown = sorted(set(kinds) - set(IOU_TYPES))
        if unknown or not kinds:
            raise ValueError(f"evaluator kinds={list(kinds)} must be some of {list(IOU_TYPES)}")
        if max_detections < 1:
            raise ValueError(f"evaluator max_detections={max_detections} must be at least 1")
        if recall_at and not 1 <= min(recall_at) <= max(recall_at) <= max_detections:
            raise ValueError(f"evaluator recall_at={list(recall_at)} must lie in 1..max_detections={max_detections}")
        if proposals and (list(kinds) != ["boxes"] or not class_agnostic):
            raise ValueError(
                "evaluator proposals=true: proposals are boxes without names: kinds=[boxes] class_agnostic=true"
            )
        self.words: Literal["vocabulary", "nothing"] = "nothing" if proposals else "vocabulary"
        self.recall_at = tuple(recall_at)
        self.level: InstanceLevel = level
        self.kinds = tuple(kinds)
        self.class_agnostic = class_agnostic
        self.max_detections = max_detections
        self.objects = objects

    def reset(self, vocabulary: Vocabulary, device: torch.device | str = "cpu") -> None:
        """Start collecting; everything is kept as RLE in main memory, whatever the device."""
        self.vocabulary = vocabulary
        self._images: list[_Image] = []

    def process(self, answer: Answer, sample: Sample) -> None:
        """Keep one image's annotated and predicted instances of this level."""
        if sample.instances is None:
            raise ValueError(
                f"image {sample.name!r} has no instances to score against: set eval.instances=annotated where the data "
                "set has them, or eval.instances=classes to take each class's pixels as one instance"
            )
        of_level = sample.instances.select(sample.instances.level == INSTANCE_LEVELS.index(self.level))
        if "masks" in self.kinds and not bool(of_level.has_mask.all()):
            raise ValueError(f"image {sample.name!r} has instances without a mask; score kinds=[boxes]")
        coverage = None
        if self.objects == "given" and sample.given is not None:
            coverage = Coverage.of(sample.object, sample.given, self.vocabulary.num_objects)
        truth, found = as_segments(of_level), answer.segments
        if self.words == "vocabulary":
            found = found.of_level(self.level)
        partly: frozenset[int] = frozenset()
        if sample.checked is not None and not self.class_agnostic:
            absent = {label for level, label in sample.checked.absent if level == self.level}
            partly = frozenset(label for level, label in sample.checked.partly if level == self.level)
            found = found.select(np.isin(found.label, [*truth.label, *absent]))
        self._images.append(_Image(sample.name, truth, of_level.counted.numpy(), found, partly, coverage))

    def evaluate(self) -> InstanceResult:
        """COCOeval over the images of all processes, run on the first one and handed to the others."""
        images = [image for part in distributed.gather_objects(self._images) for image in part]
        return distributed.from_main(lambda: self._measure(images))

    def _measure(self, images: Sequence[_Image]) -> InstanceResult:
        images = sorted(images, key=lambda image: image.name)  # the same order for any number of processes
        count = len(_seen(self.vocabulary, self.level))
        labels = np.concatenate([image.truth.label[image.counted] for image in images] or [np.zeros(0, int)])
        predicted = np.concatenate([image.found.label for image in images] or [np.zeros(0, int)])
        for what, found in (("annotations", labels), ("system's segments", predicted)):
            if not self.class_agnostic and (found < 0).any():
                raise ValueError(f"the {what} have no names; score them with class_agnostic=true (evaluator=segments)")
        covered = [image.coverage for image in images if image.coverage is not None]
        groups = {name: self._precision(images, group) for name, group in self._groups().items()}
        return InstanceResult(
            level=self.level,
            vocabulary=self.vocabulary,
            class_agnostic=self.class_agnostic,
            max_detections=self.max_detections,
            num_images=len(images),
            num_instances=self._count(labels, count),
            num_predictions=self._count(predicted, count),
            found=groups["all"],
            groups=groups,
            coverage=sum(covered, start=Coverage()) if covered else None,
        )

    def _count(self, labels: np.ndarray, count: int) -> np.ndarray:
        """How many there are of each class, or in all."""
        return np.array([len(labels)]) if self.class_agnostic else np.bincount(labels, minlength=count)

    def _groups(self) -> dict[str, np.ndarray | None]:
        """Labels whose annotations count; None: all."""
        if not self.class_agnostic:
            return {"all": None}
        seen = _seen(self.vocabulary, self.level)
        return {"all": None, "seen": np.flatnonzero(seen), "unseen": np.flatnonzero(~seen)}

    def _precision(self, images: Sequence[_Image], labels: np.ndarray | None) -> dict[str, Precision]:
        return precisions(
            images,
            labels,
            count=1 if self.class_agnostic else len(_seen(self.vocabulary, self.level)),
            class_agnostic=self.class_agnostic,
            kinds=self.kinds,
            most=self.max_detections,
            recall_at=self.recall_at,
        )


def _seen(vocabulary: Vocabulary, level: InstanceLevel) -> np.ndarray:
    """bool per class of the level: it is seen."""
    if level == "object_part":
        return vocabulary.seen
    return np.array([name not in vocabulary.unseen_objects for name in vocabulary.label_objects])
