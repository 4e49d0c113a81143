"""Protocols: what is given at test time, what is predicted at a pixel, and which pixels count (docs/protocols.md).

A protocol turns scores into a choice of labels and a sample into the truth that is counted; it keeps no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as TypingProtocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from partseg.data import io
from partseg.evaluation.labels import Choice, PartTable, ScoreReader, own_parts
from partseg.evaluation.predictions import prediction_path
from partseg.structures import IGNORE_LABEL, Sample
from partseg.vocabulary import Vocabulary


@dataclass(frozen=True)
class Truth:
    """What counts in one image. `labels` holds 0..K-1, K (background) or IGNORE_LABEL (pixel does not count).

    `weight` is how often a pixel counts (None: once). `num_dropped` is the number of labelled pixels, times how often
    a per-instance evaluation would have counted them, that this protocol leaves out because no answer could be right.
    """

    labels: Int[Tensor, "h w"]
    weight: Float[Tensor, "h w"] | None = None
    num_dropped: int = 0


class Protocol(TypingProtocol):
    """`given_objects`: ground-truth objects are shown, so other objects' scores are never read."""

    name: str
    given_objects: bool

    def choose(self, reader: ScoreReader, sample: Sample, vocabulary: Vocabulary) -> Choice | None:
        """Object per pixel and its parts; None to choose among all object-parts and background."""

    def truth(self, sample: Sample, vocabulary: Vocabulary) -> Truth:
        """Labels that count, and how often."""


class OracleObj:
    """`oracle_obj`: the object at each pixel is given; the prediction is one of its parts. Part-labelled pixels count.

    Pixels whose part label belongs to another object than the given one can never be right: dropped, and counted.
    """

    name = "oracle_obj"
    given_objects = True

    def choose(self, reader: ScoreReader, sample: Sample, vocabulary: Vocabulary) -> Choice:
        """Parts of the ground-truth object."""
        return Choice(sample.object, own_parts(vocabulary))

    def truth(self, sample: Sample, vocabulary: Vocabulary) -> Truth:
        """Labelled pixels, as often as instances of their owner cover them."""
        if sample.num_owner is not None and sample.num_foreign is not None:
            foreign = sample.num_foreign[sample.object_part != IGNORE_LABEL]
            return Truth(sample.object_part, sample.num_owner, int(foreign.sum(dtype=torch.int64)))
        lut = torch.from_numpy(vocabulary.object_lut.copy()).to(sample.object_part.device)
        owner = lut.index_select(0, sample.object_part.flatten()).view(sample.object_part.shape)
        foreign = (owner != IGNORE_LABEL) & (owner != sample.object)
        return Truth(sample.object_part.masked_fill(foreign, IGNORE_LABEL), None, int(foreign.sum()))


class OracleObjSubstring(OracleObj):
    """`oracle_obj_substring`: as `oracle_obj`, but an object may take any part whose class name contains its name.

    This is how some published numbers were made ("chair" also takes the parts of "armchair" and "swivel chair"). It is
    wrong and exists to reproduce them; it is the one place where a name is searched instead of an integer looked up.
    """

    name = "oracle_obj_substring"

    def choose(self, reader: ScoreReader, sample: Sample, vocabulary: Vocabulary) -> Choice:
        """Parts whose display name contains the ground-truth object's name."""
        return Choice(sample.object, _parts_by_substring(vocabulary))


class PredAll:
    """`pred_all`: nothing is given. The object head picks the object, then its best part wins. Labelled pixels count.

    Background or another object predicted on a labelled pixel is a miss. Models without an object head choose among all
    object-parts and background.
    """

    name = "pred_all"
    given_objects = False

    def choose(self, reader: ScoreReader, sample: Sample, vocabulary: Vocabulary) -> Choice | None:
        """Parts of the predicted object."""
        return None if reader.scores.object is None else Choice(reader.objects, own_parts(vocabulary))

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
    """`pred_obj`: objects come from label PNGs of some object segmenter; the rest is as `pred_all`.

    `directory` holds `<image id>.png` in the data set's object ids, `bits` (8 or 16) deep; all ones means background.
    """

    name = "pred_obj"

    def __init__(self, directory: str, *, bits: int = 8) -> None:
        if bits not in (8, 16):
            raise ValueError(f"pred_obj: bits={bits} is not 8 or 16, the depth of the object PNGs")
        if not Path(directory).is_dir():
            raise FileNotFoundError(f"pred_obj: no directory {directory}; it must hold one object PNG per image")
        self.directory = Path(directory)
        self.bits = bits

    def choose(self, reader: ScoreReader, sample: Sample, vocabulary: Vocabulary) -> Choice:
        """Parts of the object that the file names."""
        path = prediction_path(self.directory, sample.name)
        ids = io.read_label(path, bits=self.bits)
        if ids.shape != tuple(sample.object_part.shape):
            raise ValueError(f"{path} is {ids.shape}, the labels of this image are {tuple(sample.object_part.shape)}")
        table = io.file_table(vocabulary.label_object_lut, len(vocabulary.label_objects), bits=self.bits)
        objects = torch.from_numpy(io.translate(ids, table, path=path, what="object"))
        return Choice(objects.to(sample.object_part.device), own_parts(vocabulary))


def _parts_by_substring(vocabulary: Vocabulary) -> PartTable:
    return tuple(
        tuple(k for k, name in enumerate(vocabulary.object_parts) if owner in name) for owner in vocabulary.objects
    )
