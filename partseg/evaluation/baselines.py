"""What can be scored without a network: the most frequent part of the object that is given, and its whole box."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from partseg.labels import IGNORE_LABEL
from partseg.prediction import PhraseScores, boxes_of
from partseg.structures import Sample
from partseg.vocabulary.names import Vocabulary


def most_frequent_parts(samples: Iterable[Sample], vocabulary: Vocabulary) -> Int[Tensor, " O"]:
    """Object-part id with the most pixels for each object; K for an object without any.

    Counted on the split that is scored, the answer is the best that a constant per object can reach on it: each object
    contributes one class, whose IoU is its share of the object's pixels.
    """
    pixels = torch.zeros(len(vocabulary), dtype=torch.int64)
    for sample in samples:
        labelled = sample.object_part[sample.object_part != IGNORE_LABEL]
        pixels += torch.bincount(labelled.flatten(), minlength=len(vocabulary))
    best = torch.full((vocabulary.num_objects,), len(vocabulary), dtype=torch.int32)
    for object_id in range(vocabulary.num_objects):
        own = torch.from_numpy(vocabulary.parts_of_object(object_id).copy())
        if pixels[own].any():
            best[object_id] = own[pixels[own].argmax()]
    return best


def label_with(parts: Int[Tensor, " O"], objects: Int[Tensor, "h w"], vocabulary: Vocabulary) -> Int[Tensor, "h w"]:
    """`parts` of the object at each pixel, K where the map holds no object: a label map for `Evaluator.process`."""
    table = torch.cat([parts, parts.new_tensor([len(vocabulary)])])
    return table[objects.clamp(max=vocabulary.num_objects).long()]


def whole_objects(sample: Sample, vocabulary: Vocabulary) -> PhraseScores:
    """For every phrase the box around the object that it is about, around all objects where it is about no class.

    Told where the object is and whose part is meant, it is what a phrase's mask must beat to be about the part.
    """
    masks = []
    for phrase in sample.phrases:
        inside = sample.object < vocabulary.num_objects
        if phrase.label is not None:
            inside = sample.object == int(vocabulary.object_of[phrase.label])
        left, top, right, bottom = boxes_of(inside[None])[0].astype(int)
        masks.append(torch.full(sample.size, -1.0))
        masks[-1][top:bottom, left:right] = 1.0
    return PhraseScores(torch.stack(masks), sample.size)
