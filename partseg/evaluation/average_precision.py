"""COCO's average precision and recall of segments, through pycocotools, with LVIS's rule for federated data sets."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from partseg.prediction import Segments

IOU_TYPES = {"masks": "segm", "boxes": "bbox"}
SCORES = ("AP", "AP50", "AP75", "AR")
"""Mean over IoU .50:.05:.95, at .50, at .75, and the recall over .50:.05:.95, all with `max_detections` per image."""


@dataclass(frozen=True)
class Precision:
    """Per class (or one row without classes) and score, as shares, NaN where there is nothing to find.

    `names` are SCORES and, for some counts, R50@30: the recall at IoU .50 of the best 30 of an image.
    """

    values: Float[np.ndarray, "C S"]
    names: tuple[str, ...] = SCORES

    def __getitem__(self, score: str) -> np.ndarray:
        return self.values[:, self.names.index(score)]


@dataclass(frozen=True)
class Scored:
    """One image: its annotated and predicted segments of a level, and which annotations count."""

    name: str
    truth: Segments
    counted: np.ndarray
    found: Segments
    partly: frozenset[int] = frozenset()
    """Labels of classes that are not all outlined."""


def precisions(
    images: Sequence[Scored],
    labels: np.ndarray | None,
    *,
    count: int,
    class_agnostic: bool,
    kinds: Sequence[str],
    most: int,
    recall_at: Sequence[int] = (),
) -> dict[str, Precision]:
    """Of masks and boxes, `count` classes; annotations of other `labels` do not count (None: all do)."""
    truth, found = _coco(images, count, labels, class_agnostic)
    partly = {(i, label) for i, image in enumerate(images) for label in image.partly}
    limits: dict[str, Any] = {"most": most, "recall_at": recall_at}
    return {kind: _evaluate(truth, found, IOU_TYPES[kind], count, partly, **limits) for kind in kinds}


def _coco(images: Sequence[Scored], count: int, labels: np.ndarray | None, class_agnostic: bool) -> tuple[COCO, COCO]:
    """Annotations and detections as pycocotools holds them; ids from 1, COCOeval takes an id of 0 for no match."""
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for index, image in enumerate(images):
        counts = image.counted if labels is None else image.counted & np.isin(image.truth.label, labels)
        truth += _annotations(image.truth, index, len(truth), class_agnostic, ignored=~counts)
        found += _annotations(image.found, index, len(found), class_agnostic)
    return _index(images, truth, count), _index(images, found, count)


def _annotations(
    segments: Segments, image: int, before: int, class_agnostic: bool, *, ignored: np.ndarray | None = None
) -> list[dict[str, Any]]:
    areas = segments.areas
    return [
        {
            "id": before + i + 1,
            "image_id": image,
            "category_id": 0 if class_agnostic else int(segments.label[i]),
            "segmentation": rle,
            "area": float(areas[i]),
            "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
            "iscrowd": int(ignored is not None and ignored[i]),
            "score": float(segments.scores[i]),
        }
        for i, (rle, (left, top, right, bottom)) in enumerate(zip(segments.rles, segments.boxes))
    ]


def _index(images: Sequence[Scored], annotations: list[dict[str, Any]], count: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": m.truth.size[0], "width": m.truth.size[1]} for i, m in enumerate(images)],
        "categories": [{"id": k} for k in range(count)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on the screen
        coco.createIndex()
    return coco


class _Federated(COCOeval):
    """COCOeval in which a false detection of a class that is not all outlined in its image does not count.

    `partly` holds pairs of image and class.
    """

    def __init__(self, truth: COCO, found: COCO, iou_type: str, partly: Collection[tuple[int, int]]) -> None:
        super().__init__(truth, found, iou_type)
        self.partly = partly

    def evaluateImg(self, imgId: int, catId: int, aRng: Sequence[float], maxDet: int) -> dict[str, Any] | None:
        """One image and class, as pycocotools says."""
        found = super().evaluateImg(imgId, catId, aRng, maxDet)
        if found is not None and (imgId, catId) in self.partly:
            found["dtIgnore"] = np.logical_or(found["dtIgnore"], found["dtMatches"] == 0)
        return found


def _evaluate(
    truth: COCO,
    found: COCO,
    iou_type: str,
    count: int,
    partly: Collection[tuple[int, int]],
    *,
    most: int,
    recall_at: Sequence[int],
) -> Precision:
    """Scores per class, NaN for classes without an annotation that counts."""
    evaluation = _Federated(truth, found, iou_type, partly)
    limits = sorted({*recall_at, most})
    evaluation.params.maxDets = limits
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.catIds = list(range(count))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    # precision [T IoUs, R recalls, C, area, detections] and recall [T, C, area, detections], -1: nothing to find
    precision = evaluation.eval["precision"][:, :, :, 0, -1].astype(np.float64)
    recall = evaluation.eval["recall"][:, :, 0].astype(np.float64)
    precision[precision < 0] = np.nan
    recall[recall < 0] = np.nan
    at = {iou: int(np.argmin(abs(evaluation.params.iouThrs - iou))) for iou in (0.5, 0.75)}
    columns = [precision.mean((0, 1)), precision[at[0.5]].mean(0), precision[at[0.75]].mean(0), recall[..., -1].mean(0)]
    columns += [recall[at[0.5], :, limits.index(number)] for number in recall_at]
    return Precision(np.stack(columns, 1), (*SCORES, *(f"R50@{number}" for number in recall_at)))
