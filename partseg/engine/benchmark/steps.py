"""The work that is measured: one training step and one evaluated image, split into phases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from partseg.engine.benchmark.timing import Clock, Phases, Stopwatch
from partseg.engine.prompts import PromptSampling
from partseg.evaluation.evaluator import Evaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.runner import process_image
from partseg.losses.criterion import Criterion, check_finite
from partseg.losses.term import LossInputs, Term
from partseg.structures import Batch, Sample
from partseg.vocabulary.names import Vocabulary


class TrainStep:
    """What engine/trainer.py does in one step of one micro-batch, with a stopwatch in between.

    The text tower is run apart from the rest of the network, which changes nothing but the bookkeeping.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        vocabulary: Vocabulary,
        clip_norm: float | None,
        precision: Literal["fp32", "bf16"],
        prompt_sampling: PromptSampling | None = None,
        clock: Clock,
    ) -> None:
        self.model = model.train()
        self.criterion = criterion
        self.optimizer = optimizer
        self.batch = batch
        self.vocabulary = vocabulary
        self.clip_norm = float("inf") if clip_norm is None else clip_norm
        self.precision = precision
        self.prompt_sampling = prompt_sampling
        self.iteration = 0
        self.clock = clock
        self.device = clock.device

    def __call__(self) -> Phases:
        """One step; seconds per phase."""
        watch = Stopwatch(self.clock)
        loss = self.loss(watch)
        loss.backward()
        watch.lap("backward")
        clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        watch.lap("optimiser")
        return watch.stop()

    def loss(self, watch: Stopwatch) -> Tensor:
        """Forward pass and criterion."""
        batch = self.batch.to(self.device, non_blocking=True)
        watch.lap("transfer")
        vocabulary = self.vocabulary
        if self.prompt_sampling is not None:
            vocabulary, (batch,) = self.prompt_sampling([batch], vocabulary, iteration=self.iteration)
            self.iteration += 1
            watch.lap("prompt sampling")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            text = self.model.encode_text(vocabulary)  # type: ignore[operator]
            watch.lap("text tower")
            layers = self.criterion.attention_layers
            outputs = self.model(batch.images, vocabulary, text=text, attention_layers=layers)
        watch.lap("network")
        counts = self.criterion.counts(batch, vocabulary)
        watch.lap("loss counts")
        timed = Criterion(terms=_timed(self.criterion, watch), normalise=self.criterion.normalise)
        loss, terms = timed(outputs, batch, vocabulary, counts)
        check_finite(loss, terms, iteration=0, names=batch.names)
        watch.lap("loss rest")
        return loss


@dataclass(frozen=True)
class _TimedTerm:
    """A loss term that reports how long it took; what an earlier term computed for it is not counted again."""

    name: str
    term: Term
    watch: Stopwatch

    @property
    def attention_layers(self) -> tuple[int, ...]:
        return self.term.attention_layers

    @property
    def reads(self) -> tuple[str, ...]:
        return self.term.reads

    def counts(self, batch: Batch, vocabulary: Vocabulary) -> dict[str, Tensor]:
        return self.term.counts(batch, vocabulary)

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        self.watch.lap("loss rest")
        value = self.term(inputs, counts)
        self.watch.lap(f"loss {self.name}")
        return value


def _timed(criterion: Criterion, watch: Stopwatch) -> dict[str, dict[str, object]]:
    weights = criterion.weights
    return {n: {"weight": weights[n], "term": _TimedTerm(n, term, watch)} for n, term in criterion.terms.items()}


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
        self.prepared = predictor.prepare(model.eval(), vocabulary)
        self.evaluators = evaluators
        self.class_chunk = predictor.class_chunk
        self.sample = sample
        for evaluator in evaluators.values():
            evaluator.reset(vocabulary, self.device)

    def __call__(self) -> Phases:
        """One image; seconds per phase."""
        watch = Stopwatch(self.clock)
        sample = self.sample
        height, width = sample.object_part.shape
        objects = [i for i in sample.object.unique().tolist() if i < self.prepared.vocabulary.num_objects]
        scores = self.prepared(sample.image[None], [(height, width)], objects=objects)[0]
        watch.lap("network")
        object_part, obj = sample.object_part.to(self.device), sample.object.to(self.device)
        on_device = replace(sample, object_part=object_part, object=obj)
        process_image(scores, on_device, self.evaluators, class_chunk=self.class_chunk)
        watch.lap("post-processing")
        return watch.stop()
