"""Names for segments: one system cuts, another one that knows words says what each segment is.

The pair is a system like any other, so that a class-agnostic one enters the pixel protocols and instance scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor, nn

from partseg.geometry import InputSpec, Region, Size, to_tensor
from partseg.prediction import DenseScores, Prediction, Segments
from partseg.structures import INSTANCE_LEVELS, Batch, stack_pictures
from partseg.system import Prompts, Words
from partseg.vocabulary.names import Vocabulary


@dataclass(frozen=True)
class NamedPrompts:
    """What each of the two was asked, and the vocabulary that names come from."""

    cuts: Prompts
    names: Prompts
    vocabulary: Vocabulary

    def subset(self, kept: np.ndarray) -> NamedPrompts:
        """The same for fewer object-parts."""
        return NamedPrompts(self.cuts.subset(kept), self.names.subset(kept), self.vocabulary.subset(kept))


class Named(nn.Module):
    """`cutter`'s segments with the object-part whose probability, by `namer`'s dense scores, is highest inside each.

    Where a segment lies within a given object only that object's parts are asked for. A segment's score is multiplied
    by that probability. Both are trained already: there is nothing to train here.
    """

    weight_layouts: Sequence[Any] = ()

    def __init__(self, cutter: nn.Module, namer: nn.Module) -> None:
        super().__init__()
        self.cutter = cutter
        self.namer = namer

    @property
    def input(self) -> InputSpec:
        """The cutter's; the namer sees what that sees, brought to its own size."""
        return self.cutter.input  # type: ignore[return-value]

    def encode_text(self, words: Words) -> NamedPrompts:
        """Prompts of both; ValueError for phrases."""
        if not isinstance(words, Vocabulary):
            raise ValueError("segments are named with the classes of a vocabulary, not with phrases")
        return NamedPrompts(self.cutter.encode_text(words), self.namer.encode_text(words), words)  # type: ignore[operator]

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> Any:
        """Not there."""
        raise TypeError("a pair of systems is not trained: train each by itself")

    def predict(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        prompts: NamedPrompts,
        *,
        sizes: Sequence[Size],
        regions: Sequence[Region] | None = None,
        given: Sequence[Int[Tensor, "h w"] | None] | None = None,
    ) -> list[Prediction]:
        """Segments with names; TypeError where the one gives no segments or the other no dense scores."""
        told: dict[str, Any] = {"sizes": sizes, "given": given}
        found = self.cutter.predict(images, prompts.cuts, regions=regions, **told)  # type: ignore[operator]
        views, places = self._views(images, regions)
        scores = self.namer.predict(views, prompts.names, regions=places, **told)  # type: ignore[operator]
        return [name_segments(*each, prompts.vocabulary) for each in zip(found, scores, strict=True)]

    def _views(
        self, images: UInt8[Tensor, "B 3 H W"], regions: Sequence[Region] | None
    ) -> tuple[UInt8[Tensor, "B 3 h w"], list[Region]]:
        """The photos as the namer wants them, and where they lie in its pictures."""
        pictures, places = [], []
        for image, (top, left, height, width) in zip(images, regions or [(0, 0, *images.shape[2:])] * len(images)):
            photo = image[:, top : top + height, left : left + width].permute(1, 2, 0).cpu().numpy()
            view = self.namer.input.geometry(height, width)  # type: ignore[union-attr, operator]
            pictures.append(to_tensor(view.image(Image.fromarray(np.ascontiguousarray(photo)))))
            places.append(view.region)
        return stack_pictures(pictures).to(images.device), places


def name_segments(found: Prediction, scores: Prediction, vocabulary: Vocabulary) -> Segments:
    """Parts without a name get one; those that have one, and objects, stay."""
    if not isinstance(found, Segments) or not isinstance(scores, DenseScores):
        kinds = f"{type(found).__name__} and {type(scores).__name__}"
        raise TypeError(f"names are given to the segments of one system by the dense scores of another, not {kinds}")
    nameless = np.flatnonzero((found.level == INSTANCE_LEVELS.index("object_part")) & (found.label < 0))
    if not len(nameless):
        return found
    probability = scores.cropped().object_part[:-1].float().sigmoid().cpu()
    masks = torch.from_numpy(found.masks()[nameless]).float()[None]
    weight = F.interpolate(masks, probability.shape[1:], mode="area")[0]  # of a small segment nothing is lost
    mean = torch.einsum("nhw,khw->nk", weight, probability) / weight.sum((1, 2))[:, None]
    owner = torch.from_numpy(_owners(found, vocabulary)[nameless])
    allowed = (owner[:, None] < 0) | (owner[:, None] == torch.from_numpy(vocabulary.object_of.copy()))
    best, label = mean.masked_fill(~allowed, -1.0).max(1)
    labels, values = found.label.copy(), found.scores.copy()
    labels[nameless], values[nameless] = label.numpy(), values[nameless] * best.numpy()
    named = replace(found, label=labels, scores=values)
    return named.select(np.argsort(-values, kind="stable"))


def _owners(found: Segments, vocabulary: Vocabulary) -> np.ndarray:
    """Object id of each segment's parent, -1 without one that has parts."""
    ids = np.append(vocabulary.label_object_lut[found.label.clip(min=0)], -1)
    owners = ids[found.parent]
    return np.where((found.parent < 0) | (owners >= vocabulary.num_objects), -1, owners)
