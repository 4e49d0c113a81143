"""A system on photos: encodes the words once, runs the network on a batch, and returns a prediction per photo.

Nothing is upsampled here (see labels.py), so that network and post-processing time can be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from partseg.geometry import Region, Size
from partseg.prediction import DenseScores, Prediction
from partseg.system import Prompts, Words
from partseg.utils.devices import Precision, autocast, check_precision
from partseg.vocabulary.names import Vocabulary


class Predictor:
    """How the network is run in evaluation.

    `prompts="present"` runs only the prompts of the objects that are given, the union over a batch; for protocols that
    are given the objects it yields the same labels, the runner refuses others. `object_first` looks for the parts of
    one object at a time, on a cut-out of the photo (object_first.py); `crop_margin` is what a cut-out has more on each
    side, as a share of the object's box, and `mask_crops` blackens what is not the object.
    """

    def __init__(
        self,
        *,
        prompts: Literal["all", "present"] = "all",
        precision: Precision = "fp32",
        class_chunk: int | None = None,
        object_first: bool = False,
        crop_margin: float = 0.0,
        mask_crops: bool = False,
    ) -> None:
        if prompts not in ("all", "present"):
            raise ValueError(f"predictor.prompts={prompts!r} is not 'all' or 'present'")
        check_precision(precision, device=torch.device("cpu"), key="predictor.precision")
        if class_chunk is not None and class_chunk < 1:
            raise ValueError(f"predictor.class_chunk={class_chunk} must be at least 1, or null to choose by memory")
        if object_first and prompts == "present":
            raise ValueError("predictor.object_first prompts the parts of each object by itself: leave prompts=all")
        if not 0 <= crop_margin <= 10:
            raise ValueError(f"predictor.crop_margin={crop_margin} is a share of the object's box, from 0 to 10")
        self.prompts = prompts
        self.precision = precision
        self.class_chunk = class_chunk
        self.object_first = object_first
        self.crop_margin = crop_margin
        self.mask_crops = mask_crops

    @torch.inference_mode()
    def prepare(self, model: nn.Module, words: Words) -> PreparedPredictor:
        """The predictor for one system and its words; the text is encoded here and only here."""
        if self.object_first and not isinstance(words, Vocabulary):
            raise ValueError("predictor.object_first needs objects and parts, not phrases: give a vocabulary")
        if self.object_first and model.input.needs_object:  # type: ignore[union-attr]
            raise ValueError(f"{type(model).__name__} is told its object anyway: leave predictor.object_first=false")
        check_precision(self.precision, device=device_of(model), key="predictor.precision")
        with autocast(device_of(model), self.precision):
            encoded: Prompts = model.encode_text(words)  # type: ignore[operator]
        return PreparedPredictor(self, model, words, encoded)


@dataclass(frozen=True)
class PreparedPredictor:
    """A predictor bound to a system and encoded words; stale once the system's weights change."""

    predictor: Predictor
    model: nn.Module
    words: Words
    encoded: Prompts

    @torch.inference_mode()
    def __call__(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        sizes: Sequence[Size],
        *,
        regions: Sequence[Region] | None = None,
        given: Sequence[Int[Tensor, "h w"] | None] | None = None,
    ) -> list[Prediction]:
        """Prediction of each image, to be read at its size (height, width).

        `given` are the object maps that may be told, in ids of the vocabulary: systems whose `input.needs_object` holds
        get them, and `prompts="present"` looks which objects occur. Nobody else does.
        """
        device = device_of(self.model)
        images = images.to(device, non_blocking=True)
        present = self._present(given)
        prompts = self.encoded if present is None else self.encoded.subset(present)
        needs_object = self.model.input.needs_object  # type: ignore[union-attr]
        with autocast(device, self.predictor.precision):
            found = self.model.predict(  # type: ignore[operator]
                images, prompts, sizes=sizes, regions=regions, given=given if needs_object else None
            )
        return found if present is None else [_spread(prediction, present) for prediction in found]

    @torch.inference_mode()
    def of_object(
        self,
        object_id: int,
        images: UInt8[Tensor, "B 3 H W"],
        sizes: Sequence[Size],
        *,
        regions: Sequence[Region] | None = None,
    ) -> list[Prediction]:
        """Prediction of each image in which only the parts of one object are looked for."""
        assert isinstance(self.words, Vocabulary)
        device = device_of(self.model)
        own = self.encoded.subset(self.words.object_of == object_id)
        with autocast(device, self.predictor.precision):
            return self.model.predict(images.to(device), own, sizes=sizes, regions=regions)  # type: ignore[operator]

    def _present(self, given: Sequence[Int[Tensor, "h w"] | None] | None) -> np.ndarray | None:
        """bool [K]: object-parts to prompt; None for all."""
        if self.predictor.prompts != "present" or given is None or not isinstance(self.words, Vocabulary):
            return None
        maps = [objects.flatten() for objects in given if objects is not None]
        present = np.isin(self.words.object_of, torch.cat(maps).unique().cpu().numpy()) if maps else np.zeros(1, bool)
        if not present.any():
            present = self.words.object_of == 0
        return None if present.all() else present


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def _spread(prediction: Prediction, mask: np.ndarray) -> Prediction:
    """Logits of a subset's object-parts (and background) at their places among all; NaN elsewhere, so that reading a
    class that was not prompted fails instead of giving it a score. Objects are dropped: they were given.
    """
    if not isinstance(prediction, DenseScores):
        raise ValueError("predictor.prompts=present is for systems that give dense scores; use predictor.prompts=all")
    logits = prediction.object_part
    places = torch.from_numpy(np.append(np.flatnonzero(mask), len(mask))).to(logits.device)
    full = logits.new_full((len(mask) + 1, *logits.shape[1:]), torch.nan)
    return replace(prediction, object_part=full.index_copy_(0, places, logits), object=None)
