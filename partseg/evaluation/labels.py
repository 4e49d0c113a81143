"""A prediction to label maps: every protocol asks for its choice, and what they share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from partseg.evaluation import upsample
from partseg.prediction import DenseScores, ObjectFirstScores, Prediction, Segments
from partseg.vocabulary.names import Vocabulary

PartTable = tuple[tuple[int, ...], ...]
"""Object-part ids to choose from, ascending, for each object id."""


@dataclass(frozen=True)
class Choice:
    """An object per pixel (0..O-1; any other value is background) and the parts that each object may have."""

    objects: Int[Tensor, "h w"]
    parts: PartTable


def own_parts(vocabulary: Vocabulary) -> PartTable:
    """The parts of each object, by the vocabulary's integers."""
    return tuple(tuple(vocabulary.parts_of_object(o).tolist()) for o in range(vocabulary.num_objects))


class LabelReader(Protocol):
    """Label maps of one prediction at the size it is to be read at. Background is id K (objects: id O)."""

    has_objects: bool

    @property
    def objects(self) -> Int[Tensor, "h w"]:
        """int32 map of the predicted objects; ValueError for systems that predict none (`has_objects` is false)."""
        ...

    @property
    def object_parts(self) -> Int[Tensor, "h w"]:
        """int32 map of the best object-part among all, and background."""
        ...

    def choose(self, choice: Choice) -> Int[Tensor, "h w"]:
        """int32 object-part map: the best part of each pixel's object, K where there is no object."""
        ...


def reader_of(prediction: Prediction, vocabulary: Vocabulary, *, class_chunk: int | None = None) -> LabelReader:
    """The reader of a prediction; TypeError for one that gives no labels of a vocabulary (a mask per phrase)."""
    if isinstance(prediction, DenseScores):
        return ScoreReader(prediction.cropped(), class_chunk=class_chunk)
    if isinstance(prediction, ObjectFirstScores):
        return ObjectFirstReader(prediction, vocabulary, class_chunk=class_chunk)
    if isinstance(prediction, Segments):
        return SegmentReader(prediction, vocabulary)
    raise TypeError(f"a {type(prediction).__name__} holds no labels of a vocabulary; use evaluator=referring")


class ScoreReader:
    """Labels of dense scores; `class_chunk` classes are upsampled at a time, which never changes a label."""

    def __init__(self, scores: DenseScores, *, class_chunk: int | None = None) -> None:
        self.scores = scores
        self.class_chunk = class_chunk
        self.has_objects = scores.object is not None
        self._best: dict[tuple[int, ...], Tensor] = {}

    @cached_property
    def objects(self) -> Int[Tensor, "h w"]:
        """Object with the highest score, O where background has it."""
        if self.scores.object is None:
            raise ValueError("the model has no object head: choose among all object-parts instead")
        _check_finite(_finite_channels(self.scores.object))
        return upsample.argmax(self.scores.object, self.scores.size, chunk=self.class_chunk)

    @cached_property
    def object_parts(self) -> Int[Tensor, "h w"]:
        """Object-part with the highest score among all, K where background has it."""
        _check_finite(self._finite)
        return upsample.argmax(self.scores.object_part, self.scores.size, chunk=self.class_chunk)

    def choose(self, choice: Choice) -> Int[Tensor, "h w"]:
        """The best part of each pixel's object; an object's parts are upsampled once for all choices that name it."""
        labels = torch.full_like(choice.objects, len(self.scores.object_part) - 1, dtype=torch.int32)
        for object_id in _present(choice.objects, len(choice.parts)):
            parts = choice.parts[object_id]
            if parts not in self._best:
                _check_finite([self._finite[part] for part in parts])
                self._best[parts] = upsample.argmax(
                    self.scores.object_part, self.scores.size, channels=parts, chunk=self.class_chunk
                )
            labels = torch.where(choice.objects == object_id, self._best[parts], labels)
        return labels

    @cached_property
    def _finite(self) -> list[bool]:
        """Of each object-part; only those in question are checked, the others may not have been prompted."""
        return _finite_channels(self.scores.object_part)


def _finite_channels(logits: Float[Tensor, "C H W"]) -> list[bool]:
    return torch.isfinite(logits.float().sum((1, 2))).tolist()


def _check_finite(channels: Sequence[bool]) -> None:
    if not all(channels):
        raise ValueError(
            "the network's scores are not finite (NaN or infinite): the weights or the precision are broken"
        )


class ObjectFirstReader:
    """Labels of parts that were looked for object by object; each is read on its object's crop and pasted back."""

    has_objects = True

    def __init__(self, scores: ObjectFirstScores, vocabulary: Vocabulary, *, class_chunk: int | None = None) -> None:
        self.scores = scores
        self.own = own_parts(vocabulary)
        self.class_chunk = class_chunk

    @property
    def objects(self) -> Int[Tensor, "h w"]:
        """The objects that the system found."""
        if self.scores.found is None:
            raise ValueError("predictor.object_first was told the objects and looked for none itself")
        return self.scores.found.objects

    @property
    def object_parts(self) -> Int[Tensor, "h w"]:
        """The best part of the objects found, K elsewhere."""
        return self.choose(Choice(self.objects, self.own))

    def choose(self, choice: Choice) -> Int[Tensor, "h w"]:
        """The best part of each pixel's object on that object's crop; ValueError for parts that it does not own."""
        labels = torch.full_like(choice.objects, sum(map(len, self.own)), dtype=torch.int32)
        look = self.scores.look(choice.objects)
        for object_id, crop in look.crops.items():
            foreign = set(choice.parts[object_id]) - set(self.own[object_id])
            if foreign:
                raise ValueError(
                    "predictor.object_first looks for an object's own parts only; leave out oracle_obj_substring"
                )
            left, top, right, bottom = crop.box
            reader = ScoreReader(crop.scores.cropped(), class_chunk=self.class_chunk)
            channels = tuple(self.own[object_id].index(part) for part in choice.parts[object_id])
            here = choice.objects[top:bottom, left:right]
            best = reader.choose(Choice(torch.zeros_like(here), (channels,)))
            ids = torch.tensor(self.own[object_id], dtype=torch.int32, device=labels.device)[best.long()]
            cut = labels[top:bottom, left:right]
            labels[top:bottom, left:right] = torch.where(here == object_id, ids, cut)
        return labels


class SegmentReader:
    """Labels of instances: segments are painted worst first, so that at each pixel the best one that may is left."""

    def __init__(self, segments: Segments, vocabulary: Vocabulary) -> None:
        self.parts = segments.of_level("object_part")
        self.object_segments = segments.of_level("object")
        self.has_objects = "object" in segments.levels
        self.vocabulary = vocabulary
        self.size = segments.size

    @cached_property
    def _masks(self) -> list[Tensor]:
        return [torch.from_numpy(mask) for mask in self.parts.masks()]

    @cached_property
    def objects(self) -> Int[Tensor, "h w"]:
        """The best object segment over each pixel, O where there is none."""
        if not self.has_objects:
            raise ValueError("the model finds no objects: choose among all object-parts instead")
        labels = torch.full(self.size, self.vocabulary.num_objects, dtype=torch.int32)
        ids = self.vocabulary.label_object_lut[self.object_segments.label].clip(max=self.vocabulary.num_objects)
        for mask, object_id in zip(reversed(self.object_segments.masks()), reversed(ids)):
            labels[torch.from_numpy(np.ascontiguousarray(mask))] = int(object_id)
        return labels

    @cached_property
    def object_parts(self) -> Int[Tensor, "h w"]:
        """The best part segment over each pixel, K where there is none."""
        everything = torch.zeros(self.size, dtype=torch.int32)
        return self.choose(Choice(everything, (tuple(range(len(self.vocabulary))),)))

    def choose(self, choice: Choice) -> Int[Tensor, "h w"]:
        """The best part segment whose class the pixel's object may have, K where there is none."""
        if (self.parts.label < 0).any():
            raise ValueError("the model's segments have no names, which pixel protocols score; use evaluator=segments")
        num_objects, classes = len(choice.parts), len(self.vocabulary)
        may = torch.zeros(num_objects + 1, classes, dtype=torch.bool)
        for object_id, parts in enumerate(choice.parts):
            may[object_id, list(parts)] = True
        objects = choice.objects.cpu().clamp(max=num_objects).long()
        labels = torch.full(self.size, classes, dtype=torch.int32)
        for mask, label in zip(reversed(self._masks), reversed(self.parts.label.tolist())):
            labels[mask & may[objects, label]] = label
        return labels.to(choice.objects.device)


def _present(objects: Int[Tensor, "h w"], num_objects: int) -> Sequence[int]:
    """Object ids that occur in the map."""
    counts = torch.bincount(objects.flatten().clamp(max=num_objects), minlength=num_objects + 1)
    return counts[:num_objects].nonzero().flatten().tolist()
