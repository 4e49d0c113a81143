"""What scores predictions, whatever they are: `Evaluator`, and the `Result` that it leaves for tables and files."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from partseg.evaluation.labels import LabelReader, reader_of
from partseg.prediction import PhraseScores, Prediction, Segments
from partseg.structures import Sample
from partseg.vocabulary.names import Vocabulary

Objects = Literal["none", "truth", "given"]
"""What is known of the objects when a prediction is read: nothing, the annotated ones, or those of some segmenter."""


class Answer:
    """One prediction as evaluators see it; what several of them need is made once."""

    def __init__(self, prediction: Prediction, vocabulary: Vocabulary, *, class_chunk: int | None = None) -> None:
        self.prediction = prediction
        self.vocabulary = vocabulary
        self.class_chunk = class_chunk

    @cached_property
    def labels(self) -> LabelReader:
        """Label maps of dense scores or segments."""
        return reader_of(self.prediction, self.vocabulary, class_chunk=self.class_chunk)

    @property
    def segments(self) -> Segments:
        """The instances; TypeError for a system that predicts none."""
        return self._as(Segments, "instances", "pixels (evaluator=default)")

    @property
    def phrases(self) -> PhraseScores:
        """A mask per phrase; TypeError for any other prediction."""
        return self._as(PhraseScores, "a mask per phrase", "pixels or instances")

    def _as(self, kind: type, what: str, instead: str) -> Any:
        if not isinstance(self.prediction, kind):
            name = type(self.prediction).__name__
            raise TypeError(f"this evaluator scores {what}, the system gave {name}; score its {instead} instead")
        return self.prediction


class Result(Protocol):
    """What an evaluator measured on all processes."""

    def scores(self) -> dict[str, float | None]:
        """Flat scores in percent, None where one is not defined; `X_seen`, `X_unseen`, `X_harmonic` beside `X`."""
        ...

    def describe(self) -> dict[str, Any]:
        """The evaluator's entry in results.json; it holds `kind` and `metrics`, which are the scores."""
        ...


class Evaluator(Protocol):
    """Counts over a data set: reset, process images, evaluate (over all processes).

    `words` says whether predictions are about the vocabulary, each image's own phrases, or nothing: the regions that a
    system proposes. `objects` says what of
    the objects is shown to whoever reads the prediction; a system that is itself told the objects is refused by others.
    """

    @property
    def words(self) -> Literal["vocabulary", "phrases", "nothing"]:
        """What the evaluator wants predictions about."""
        ...

    @property
    def objects(self) -> Objects:
        """What is shown of the objects."""
        ...

    def reset(self, vocabulary: Vocabulary, device: torch.device | str = "cpu") -> None:
        """Start anew for a vocabulary; counts may be kept on `device`."""
        ...

    def process(self, answer: Answer, sample: Sample) -> Tensor | None:
        """Count one image; the label map [h, w] that was scored, for evaluators that score one."""
        ...

    def evaluate(self) -> Result:
        """What was counted on all processes; every process must call it."""
        ...
