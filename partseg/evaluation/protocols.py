"""Protocols: what is given at test time, what is predicted at a pixel, and which pixels count (docs/protocols.md).

A protocol turns a prediction into labels and a sample into the truth that is counted; it keeps no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol as TypingProtocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from partseg.evaluation.evaluator import Objects
from partseg.evaluation.labels import Choice, LabelReader, PartTable, SegmentReader, own_parts
from partseg.labels import IGNORE_LABEL
from partseg.structures import Sample
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.tables import table


@dataclass(frozen=True)
class Truth:
    """What counts in one image. `labels` holds 0..K-1, K (background) or IGNORE_LABEL (pixel does not count).

    `weight` is how often a pixel counts (None: once). `num_dropped` is the number of labelled pixels, times how often
    a per-instance evaluation would have counted them, that this protocol leaves out because no answer could be right.
    """

    labels: Int[Tensor, "h w"]
    weight: Float[Tensor, "h w"] | None = None
    num_dropped: int | Int[Tensor, ""] = 0


class Protocol(TypingProtocol):
    """`objects` says what of the objects is shown; docs/protocols.md has all of them in one table."""

    name: str
    objects: Objects

    def labels(self, reader: LabelReader, sample: Sample, vocabulary: Vocabulary) -> Int[Tensor, "h w"]:
        """int32 predicted object-part at each pixel, K for background."""

    def truth(self, sample: Sample, vocabulary: Vocabulary) -> Truth:
        """Labels that count, and how often."""


class OracleObj:
    """`oracle_obj`: the object at each pixel is given; the prediction is one of its parts. Part-labelled pixels count.

    Pixels whose part label belongs to another object than the given one can never be right: dropped, and counted.
    """

    name = "oracle_obj"
    objects: Objects = "truth"

    def labels(self, reader: LabelReader, sample: Sample, vocabulary: Vocabulary) -> Int[Tensor, "h w"]:
        """The best part of the ground-truth object."""
        return reader.choose(Choice(sample.object, own_parts(vocabulary)))

    def truth(self, sample: Sample, vocabulary: Vocabulary) -> Truth:
        """Labelled pixels, as often as instances of their owner cover them."""
        if sample.num_owner is not None and sample.num_foreign is not None:
            foreign = sample.num_foreign * (sample.object_part != IGNORE_LABEL)
            return Truth(sample.object_part, sample.num_owner, foreign.sum(dtype=torch.int64))
        lut = table(vocabulary, "object_lut", device=sample.object_part.device)
        owner = lut.index_select(0, sample.object_part.flatten()).view(sample.object_part.shape)
        foreign = (owner != IGNORE_LABEL) & (owner != sample.object)
        return Truth(sample.object_part.masked_fill(foreign, IGNORE_LABEL), None, foreign.sum())


class OracleObjSubstring(OracleObj):
    """`oracle_obj_substring`: as `oracle_obj`, but an object may take any part whose class name contains its name.

    This is how some published numbers were made ("chair" also takes the parts of "armchair" and "swivel chair"). It is
    wrong and exists to reproduce them; it is the one place where a name is searched instead of an integer looked up.
    """

    name = "oracle_obj_substring"

    def labels(self, reader: LabelReader, sample: Sample, vocabulary: Vocabulary) -> Int[Tensor, "h w"]:
        """The best part whose display name contains the ground-truth object's name."""
        return reader.choose(Choice(sample.object, _parts_by_substring(vocabulary)))


class PredAll:
    """`pred_all`: nothing is given. The predicted object is found first, then its best part. Labelled pixels count.

    Background or another object predicted on a labelled pixel is a miss. Systems that predict no objects choose among
    all object-parts and background.
    """

    name = "pred_all"
    objects: Objects = "none"

    def labels(self, reader: LabelReader, sample: Sample, vocabulary: Vocabulary) -> Int[Tensor, "h w"]:
        """The best part of the predicted object."""
        if not reader.has_objects:
            return reader.object_parts
        return reader.choose(Choice(reader.objects, own_parts(vocabulary)))

    def truth(self, sample: Sample, vocabulary: Vocabulary) -> Truth:
        """Labelled pixels, as often as instances of any object cover them."""
        if sample.num_owner is None or sample.num_foreign is None:
            return Truth(sample.object_part)
        return Truth(sample.object_part, sample.num_owner.float() + sample.num_foreign.float())


class PredAllStrict(PredAll):
    """`pred_all_strict`: as `pred_all`, but every pixel but void counts once; unlabelled ones are background."""

    name = "pred_all_strict"

    def truth(self, sample: Sample, vocabulary: Vocabulary) -> Truth:
        """Labels with background K; void is where the object map says IGNORE_LABEL."""
        labels = torch.where(sample.object_part == IGNORE_LABEL, len(vocabulary), sample.object_part)
        return Truth(labels.masked_fill(sample.object == IGNORE_LABEL, IGNORE_LABEL))


class PredObj(PredAll):
    """`pred_obj`: objects come from some segmenter's PNGs (eval.objects=<folder>); the rest is as `pred_all`."""

    name = "pred_obj"
    objects: Objects = "given"

    def labels(self, reader: LabelReader, sample: Sample, vocabulary: Vocabulary) -> Int[Tensor, "h w"]:
        """The best part of the object that the segmenter found."""
        if sample.given is None:
            raise ValueError("pred_obj reads the objects of a segmenter: set eval.objects=<folder with <image id>.png>")
        return reader.choose(Choice(sample.given, own_parts(vocabulary)))


class SemanticOracle:
    """`semantic_oracle`: segments without names take that of the annotated part that they cover most of (OPS, table 5).

    They are painted worst first, within the objects that are shown. It says how well an image is cut, as if every name
    were right: no number of a system that names parts itself compares with it. Part-labelled pixels count, or, with
    `background`, all but void ones, unlabelled pixels being background.
    """

    name = "semantic_oracle"

    def __init__(self, *, objects: Objects = "truth", background: bool = False) -> None:
        self.objects = objects
        self.background = background

    def labels(self, reader: LabelReader, sample: Sample, vocabulary: Vocabulary) -> Int[Tensor, "h w"]:
        """The best segment over each pixel."""
        if not isinstance(reader, SegmentReader):
            raise TypeError("semantic_oracle names segments, the system gave dense scores; score its pixels instead")
        labels = reader.named(sample.object_part).object_parts.to(sample.object_part.device)
        shown = sample.object if self.objects == "truth" else sample.given
        if self.objects == "none" or shown is None:
            return labels
        return torch.where(shown < vocabulary.num_objects, labels, len(vocabulary))

    def truth(self, sample: Sample, vocabulary: Vocabulary) -> Truth:
        """Labelled pixels, or all but void."""
        return PredAllStrict().truth(sample, vocabulary) if self.background else Truth(sample.object_part)


def _parts_by_substring(vocabulary: Vocabulary) -> PartTable:
    return tuple(
        tuple(k for k, name in enumerate(vocabulary.object_parts) if owner in name) for owner in vocabulary.objects
    )
