"""The work that is measured: one training step and one evaluated image, split into phases."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor, nn

from partseg.engine.benchmark.timing import Clock, LayerTimes, Phases, Stopwatch
from partseg.engine.prompts import PromptSampling
from partseg.engine.trainer import Trainer
from partseg.evaluation.evaluator import Answer, Evaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.runner import on_device, predict_batch, process_image, told_objects
from partseg.losses.criterion import Criterion
from partseg.losses.term import LossInputs, Term
from partseg.prediction import Prediction
from partseg.structures import Batch, EvalBatch, Sample
from partseg.system import Prompts, Words
from partseg.utils.devices import Precision
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases


class TrainStep:
    """The trainer's own step on one batch over and over, with a stopwatch around its phases."""

    def __init__(
        self,
        model: nn.Module,
        *,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        clip_norm: float | None,
        precision: Precision,
        prompt_sampling: PromptSampling | None = None,
        layers: Sequence[str] = (),
        clock: Clock,
    ) -> None:
        self.model = model.train()
        self.batch = batch
        self.clock = clock
        self.device = clock.device
        self.watch = Stopwatch(clock)
        self.layers = LayerTimes(model, layers, clock=clock)
        self._time_text(model)
        self.trainer = Trainer(
            model,
            criterion=Criterion(terms=self._timed(criterion), normalise=criterion.normalise),
            optimizer=optimizer,
            schedule=lambda _: 1.0,
            loader=repeat(batch),
            vocabulary=batch.vocabulary,
            iterations=1,
            clip_norm=clip_norm,
            precision=precision,
            prompt_sampling=prompt_sampling,
            phase=self.phase,
        )

    def __call__(self) -> Phases:
        """One step; seconds per phase, and of the layers, which lie within phases."""
        self.watch = Stopwatch(self.clock)
        with warnings.catch_warnings():  # of layers that have no time in backward
            warnings.filterwarnings("ignore", "Full backward hook is firing|For backward hooks to be called")
            self.trainer.step(repeat(self.batch))
        self.trainer.iteration += 1
        self.watch.lap("rest")
        return self.watch.stop() | self.layers.take()

    def loss(self) -> Tensor:
        """Forward pass and criterion alone."""
        batch = self.batch.to(self.device)
        return self.trainer.loss(batch, self.trainer.reduce_counts([batch]))[0]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time of a part of the step."""
        self.watch.lap("rest")
        self.layers.in_backward = name == "backward"
        yield
        self.layers.in_backward = False
        self.watch.lap(name)

    def _time_text(self, model: nn.Module) -> None:
        """The text tower runs inside the network; its share is timed where the system calls it."""
        encode = model.encode_text

        def timed(words: Words) -> Prompts:
            self.watch.lap("network")
            prompts: Prompts = encode(words)  # type: ignore[operator]
            self.watch.lap("text tower")
            return prompts

        model.encode_text = timed  # type: ignore[assignment]

    def _timed(self, criterion: Criterion) -> dict[str, dict[str, object]]:
        terms = {name: _TimedTerm(name, term, self) for name, term in criterion.terms.items()}
        return {name: {"weight": criterion.weights[name], "term": term} for name, term in terms.items()}


@dataclass(frozen=True)
class _TimedTerm:
    """A loss term that reports how long it took; what an earlier term computed for it is not counted again."""

    name: str
    term: Term
    step: TrainStep

    @property
    def reads(self) -> tuple[str, ...]:
        return self.term.reads

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return self.term.counts(batch)

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        self.step.watch.lap("loss")
        value = self.term(inputs, counts)
        self.step.watch.lap(f"loss {self.name}")
        return value


class EvaluateImage:
    """Network and post-processing of one image for all evaluators; the text is encoded once, beforehand."""

    def __init__(
        self,
        model: nn.Module,
        *,
        predictor: Predictor,
        evaluators: Mapping[str, Evaluator],
        sample: Sample,
        vocabulary: Vocabulary,
        clock: Clock,
    ) -> None:
        self.clock = clock
        self.device = clock.device
        asked = {evaluator.words for evaluator in evaluators.values()}
        words: Words = vocabulary
        if asked == {"phrases"}:
            words = Phrases(tuple(phrase.text for phrase in sample.phrases))
        self.prepared = predictor.prepare(model.eval(), words)
        self.evaluators = evaluators
        self.vocabulary = vocabulary
        self.told = told_objects(model, predictor, evaluators)
        self.class_chunk = predictor.class_chunk
        self.sample = sample
        for evaluator in evaluators.values():
            evaluator.reset(vocabulary, self.device)

    def __call__(self) -> Phases:
        """One image; seconds per phase."""
        watch = Stopwatch(self.clock)
        prediction = self.network()
        watch.lap("network")
        answer = Answer(prediction, self.vocabulary, class_chunk=self.class_chunk)
        process_image(answer, on_device(self.sample, self.device), self.evaluators)
        watch.lap("post-processing")
        return watch.stop()

    def network(self) -> Prediction:
        """What the network says of the image; nothing is upsampled."""
        batch = EvalBatch(self.sample.image[None], (self.sample,))
        return predict_batch(self.prepared, batch, told=self.told)[0]
