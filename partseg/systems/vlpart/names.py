"""Words as rows of the text classifier, and how annotated labels number them.

Legend: K object-parts, L objects of the label files, C = K + L classes, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from partseg.structures import INSTANCE_LEVELS, InstanceLevel
from partseg.vocabulary.names import Vocabulary

Kind = Literal["boxes", "image", "pseudo"]
"""What a data set's labels are: instances, names of what is somewhere in the picture, or parsed (pseudo) parts."""


@dataclass(frozen=True)
class Names:
    """Text features of the classes that are looked for: object-parts, then objects; either may be left out."""

    vocabulary: Vocabulary
    parts: Float[Tensor, "K D"]
    objects: Float[Tensor, "L D"]

    def subset(self, kept: np.ndarray) -> Names:
        """The names of `vocabulary.subset(kept)`."""
        smaller = self.vocabulary.subset(kept)
        places = [self.vocabulary.label_objects.index(name) for name in smaller.label_objects]
        parts = self.parts[torch.from_numpy(kept).to(self.parts.device)] if len(self.parts) else self.parts
        return Names(smaller, parts, self.objects[places] if len(self.objects) else self.objects)

    @property
    def rows(self) -> Float[Tensor, "C+1 D"]:
        """The classifier: normalised, with background as a row of zeros, whose logit is always 0."""
        return F.pad(F.normalize(torch.cat([self.parts, self.objects]).float(), dim=1), (0, 0, 0, 1))

    @property
    def levels(self) -> tuple[InstanceLevel, ...]:
        """The levels that are looked for."""
        sizes = (len(self.parts), len(self.objects))
        return tuple(level for level, size in zip(INSTANCE_LEVELS, sizes) if size)

    def classes_of(self, level: Int[Tensor, " N"], label: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Class of each annotated instance, -1 for levels that are not looked for."""
        part, thing = (level == INSTANCE_LEVELS.index(name) for name in INSTANCE_LEVELS)
        classes = torch.full_like(label, -1)
        if len(self.parts):
            classes = torch.where(part, label, classes)
        return torch.where(thing, label + len(self.parts), classes) if len(self.objects) else classes

    def levels_of(self, classes: Int[np.ndarray, " N"]) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """Level and label of each class."""
        level = (classes >= len(self.parts)).astype(np.int64)
        return level, np.where(level == 1, classes - len(self.parts), classes)


@dataclass(frozen=True)
class Source:
    """How the data set of one name in a mixture is trained on.

    `federated` is the number of classes whose loss counts in a step (LVIS, PACO: not everything is annotated in every
    picture): those of the step's regions, and others drawn with probability proportional to the square root of their
    number in `image_counts`, by class name; None: all classes count.
    """

    kind: Kind = "boxes"
    levels: tuple[InstanceLevel, ...] = INSTANCE_LEVELS
    federated: int | None = None
    image_counts: Mapping[str, float] | None = None

    @classmethod
    def of(cls, name: str, entry: Mapping[str, Any], default: Source) -> Source:
        """A source from its entry in the model's YAML; ValueError names key and what is allowed."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(entry) - known)
        if unknown:
            raise ValueError(f"model.sources.{name} has unknown keys {unknown}; there are {sorted(known)}")
        source = replace(default, **entry)
        if source.kind not in get_args(Kind):
            raise ValueError(f"model.sources.{name}.kind is {source.kind!r}, not one of {list(get_args(Kind))}")
        return replace(source, levels=check_levels(source.levels, f"model.sources.{name}.levels"))

    def weights(self, names: Sequence[str], device: torch.device) -> Float[Tensor, " C"]:
        """Of each class, how probable it is to be drawn for the federated loss, not normalised."""
        if self.image_counts is None:
            return torch.ones(len(names), device=device)
        missing = [name for name in names if name not in self.image_counts]
        if missing:
            raise ValueError(f"image_counts of a federated source lack {missing[:3]} and {len(missing)} names in all")
        return torch.tensor([float(self.image_counts[name]) for name in names], device=device).sqrt()


def check_levels(levels: Sequence[str], key: str) -> tuple[InstanceLevel, ...]:
    """ValueError that names the config key for levels that do not exist."""
    if not levels or set(levels) - set(INSTANCE_LEVELS):
        raise ValueError(f"{key}={list(levels)} must be some of {list(INSTANCE_LEVELS)}")
    return tuple(level for level in INSTANCE_LEVELS if level in levels)


def class_names(vocabulary: Vocabulary, levels: Sequence[InstanceLevel]) -> list[str]:
    """Names of the classes in their order, as prompts say them."""
    parts = vocabulary.prompts("object_part") if "object_part" in levels else ()
    words = vocabulary.prompt_names
    objects = [words.get(name, name) for name in vocabulary.label_objects] if "object" in levels else []
    return [*parts, *objects]
