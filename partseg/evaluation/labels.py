"""Scores of one image to label maps: every protocol asks for its choice, and what they share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from partseg.evaluation import upsample
from partseg.structures import Scores
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


class ScoreReader:
    """Label maps of one image, at the size its scores are to be read at. Background is id K (objects: id O).

    `class_chunk` is the number of classes upsampled at a time; it never changes a label.
    """

    def __init__(self, scores: Scores, *, class_chunk: int | None = None) -> None:
        self.scores = scores
        self.class_chunk = class_chunk

    @cached_property
    def objects(self) -> Int[Tensor, "h w"]:
        """Object with the highest score, O where background has it."""
        if self.scores.object is None:
            raise ValueError("the model has no object head: choose among all object-parts instead")
        return upsample.argmax(self.scores.object, self.scores.size, chunk=self.class_chunk)

    @cached_property
    def object_parts(self) -> Int[Tensor, "h w"]:
        """Object-part with the highest score among all, K where background has it."""
        return upsample.argmax(self.scores.object_part, self.scores.size, chunk=self.class_chunk)

    def choose(self, choices: Sequence[Choice]) -> list[Int[Tensor, "h w"]]:
        """int32 object-part map for each choice: the best part of the pixel's object, K where there is no object.

        Each object's parts are upsampled once for all choices that name it.
        """
        background = len(self.scores.object_part) - 1
        distinct = list({(id(choice.objects), choice.parts): choice for choice in choices}.values())
        # whole numbers in float32, because a CPU compares and adds those several times faster than integers
        maps = [choice.objects.float() for choice in distinct]
        labels = [torch.zeros_like(objects) for objects in maps]
        wanted: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for i, choice in enumerate(distinct):
            for object_id in _present(choice.objects, len(choice.parts)):
                wanted.setdefault(choice.parts[object_id], []).append((i, object_id))
        for parts, places in wanted.items():
            masks = [torch.eq(maps[i], object_id, out=torch.empty_like(maps[i])) for i, object_id in places]
            box = _bounding_box(masks)
            inside = (slice(box[0], box[2]), slice(box[1], box[3]))
            channels = torch.tensor(parts, device=self.scores.object_part.device)
            best = upsample.argmax(
                self.scores.object_part, self.scores.size, channels=channels, box=box, chunk=self.class_chunk
            )
            offset = best.float().sub_(background)
            for (i, _), mask in zip(places, masks):
                labels[i][inside].addcmul_(mask[inside], offset)
        done = {
            (id(choice.objects), choice.parts): label.add_(background).int() for choice, label in zip(distinct, labels)
        }
        return [done[id(choice.objects), choice.parts] for choice in choices]


def _present(objects: Int[Tensor, "h w"], num_objects: int) -> list[int]:
    """Object ids that occur in the map."""
    counts = torch.bincount(objects.flatten().clamp(max=num_objects), minlength=num_objects + 1)
    return counts[:num_objects].nonzero().flatten().tolist()


def _bounding_box(masks: Sequence[Tensor]) -> upsample.Box:
    """Smallest box around the ones of all masks."""
    rows = torch.stack([mask.amax(1) for mask in masks]).amax(0).nonzero().flatten()
    columns = torch.stack([mask.amax(0) for mask in masks]).amax(0).nonzero().flatten()
    ends = torch.stack([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
    top, left, bottom, right = ends.tolist()
    return top, left, bottom, right
