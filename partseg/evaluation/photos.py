"""A system's prediction as people and files want it: label map, names and segments of one photo."""

from __future__ import annotations

import numpy as np
import torch

from partseg.evaluation import upsample
from partseg.evaluation.evaluator import Answer
from partseg.evaluation.protocols import OracleObj, PredAll
from partseg.photo_prediction import PhotoPrediction, Segment, segment_of_mask, segments_of
from partseg.prediction import DenseScores, Segments
from partseg.structures import Sample
from partseg.system import Words
from partseg.vocabulary.phrases import Phrases

PROTOCOLS: dict[str, type[PredAll] | type[OracleObj]] = {"pred_all": PredAll, "oracle_obj": OracleObj}
_NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


@torch.inference_mode()
def photo_prediction(
    answer: Answer, sample: Sample, words: Words, protocol: str, *, keep_scores: bool = False
) -> PhotoPrediction:
    """What one photo shows, read by a protocol, without its pixels; the sample is on the scores' device."""
    labels, classes, instances = _labels(answer, sample, words, protocol)
    logits = None
    if keep_scores and isinstance(answer.prediction, DenseScores):
        logits = answer.prediction.cropped().object_part.float().cpu().numpy()
    return PhotoPrediction(
        labels=labels,
        image=_NO_IMAGE,
        words=words,
        classes=classes,
        name=sample.name,
        source=sample.file_name,
        protocol=protocol,
        instances=instances,
        logits=logits,
    )


def _labels(
    answer: Answer, sample: Sample, words: Words, protocol: str
) -> tuple[np.ndarray, tuple[str, ...], tuple[Segment, ...] | None]:
    """Label map, the names of its classes, and the segments of systems that find some."""
    if isinstance(words, Phrases):
        found, texts = answer.phrases, words.texts
        masks, scores = found.masks().cpu().numpy(), found.scores().tolist()
        segments = [segment_of_mask(m, name=texts[i], label=i, score=scores[i]) for i, m in enumerate(masks) if m.any()]
        threshold = torch.full_like(found.logits[:1], found.threshold)
        best = DenseScores(torch.cat([found.logits, threshold]), None, found.size, found.region).cropped()
        return upsample.argmax(best.object_part.float(), best.size).cpu().numpy(), texts, tuple(segments)
    instances = None
    if isinstance(answer.prediction, Segments):
        instances = segments_of(answer.segments, words)
        parts = answer.segments.of_level("object_part")
        if (parts.label < 0).any():
            names = tuple(segment.name for segment in segments_of(parts, words))
            return _best_on_top(parts.masks()), names, instances
    labels = PROTOCOLS[protocol]().labels(answer.labels, sample, words)
    return labels.cpu().numpy(), words.object_parts, instances


def _painted(masks: np.ndarray, background: int) -> np.ndarray:
    """int32 map of mask positions, later ones on top; `background` where there is none."""
    labels = np.full(masks.shape[1:], background, np.int32)
    for position, mask in enumerate(masks):
        labels[mask] = position
    return labels


def _best_on_top(masks: np.ndarray) -> np.ndarray:
    """As `_painted`, for masks that are sorted best first."""
    count = len(masks)
    return np.append(np.arange(count)[::-1], count)[_painted(masks[::-1], count)].astype(np.int32)
