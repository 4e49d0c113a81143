"""Network to `Scores`: encodes the vocabulary once, runs the model on a batch, and returns logits image by image.

Nothing is upsampled here (see labels.py), so that network and post-processing time can be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from partseg.structures import Scores, TextFeatures
from partseg.vocabulary.names import Vocabulary

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """How the network is run in evaluation.

    `prompts="present"` runs only the prompts of the objects that are given, the union over a batch; for protocols that
    are given the objects it yields the same labels, other protocols are refused.
    """

    def __init__(
        self,
        *,
        prompts: Literal["all", "present"] = "all",
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        class_chunk: int | None = None,
    ) -> None:
        if prompts not in ("all", "present"):
            raise ValueError(f"predictor.prompts={prompts!r} is not 'all' or 'present'")
        if precision not in PRECISIONS:
            raise ValueError(f"predictor.precision={precision!r} is not one of {sorted(PRECISIONS)}")
        if class_chunk is not None and class_chunk < 1:
            raise ValueError(f"predictor.class_chunk={class_chunk} must be at least 1, or null to choose by memory")
        self.prompts = prompts
        self.precision = precision
        self.class_chunk = class_chunk

    @torch.inference_mode()
    def prepare(self, model: nn.Module, vocabulary: Vocabulary) -> PreparedPredictor:
        """The predictor for one model and vocabulary; the text is encoded here and only here."""
        with self.autocast(next(model.parameters()).device):
            encode_text: Callable[[Vocabulary], TextFeatures] = model.encode_text  # type: ignore[assignment]
            text = encode_text(vocabulary)
        return PreparedPredictor(self, model, vocabulary, text)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Context of the chosen precision on `device`."""
        dtype = PRECISIONS[self.precision]
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@dataclass(frozen=True)
class PreparedPredictor:
    """A predictor bound to a model and the text features of a vocabulary; stale once the model's weights change."""

    predictor: Predictor
    model: nn.Module
    vocabulary: Vocabulary
    text: TextFeatures

    @torch.inference_mode()
    def __call__(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        sizes: Sequence[tuple[int, int]],
        *,
        objects: Iterable[int] | None = None,
    ) -> list[Scores]:
        """Scores of each image, to be read at its size (height, width).

        `objects` are the ids of the objects given to the protocol; only `prompts="present"` looks at them.
        """
        device = next(self.model.parameters()).device
        images = images.to(device, non_blocking=True)
        present = None
        if self.predictor.prompts == "present" and objects is not None:
            present = np.isin(self.vocabulary.object_of, sorted(objects))
            if not present.any():
                present[self.vocabulary.parts_of_object(0)] = True
        with self.predictor.autocast(device):
            if present is None or present.all():
                outputs = self.model(images, self.vocabulary, text=self.text, part_masks=False)
                object_part, object_logits = outputs.object_part, outputs.object
            else:
                text = select_text(self.text, self.vocabulary, present)
                outputs = self.model(images, self.vocabulary.subset(present), text=text, part_masks=False)
                object_part, object_logits = _spread(outputs.object_part, present), None
        return [
            Scores(object_part[i], None if object_logits is None else object_logits[i], size)
            for i, size in enumerate(sizes)
        ]


def select_text(text: TextFeatures, vocabulary: Vocabulary, mask: np.ndarray) -> TextFeatures:
    """Text features of `vocabulary.subset(mask)`, taken from those of the whole vocabulary."""
    kept = np.flatnonzero(mask)
    return replace(
        text,
        object_part=_rows(text.object_part, kept),
        object=_rows(text.object, np.unique(vocabulary.object_of[kept])),
        part=_rows(text.part, np.array(list(dict.fromkeys(vocabulary.part_of[kept].tolist())))),
    )


def _rows(features: Tensor | None, index: np.ndarray) -> Tensor | None:
    return None if features is None else features[torch.from_numpy(index).to(features.device)]


def _spread(logits: Tensor, mask: np.ndarray) -> Tensor:
    """Logits of a subset's object-parts (and background) at their places among all; NaN elsewhere, so that reading a
    class that was not prompted fails instead of giving it a score.
    """
    places = torch.from_numpy(np.append(np.flatnonzero(mask), len(mask))).to(logits.device)
    full = logits.new_full((len(logits), len(mask) + 1, *logits.shape[2:]), torch.nan)
    return full.index_copy_(1, places, logits)
