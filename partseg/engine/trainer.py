"""The training loop. Everything a run does to the weights is in `step`; hooks watch and write files.

Called by tools/train_net.py with built objects; calls the model, the criterion and nothing else of partseg.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from partseg.engine.ema import Ema
from partseg.engine.prompts import PromptSampling
from partseg.engine.signals import StopRequest
from partseg.losses.criterion import Criterion, check_finite
from partseg.structures import Batch
from partseg.utils import distributed
from partseg.vocabulary import Vocabulary


class Hook(Protocol):
    """Side effects of a run. Hooks read the trainer; they never touch gradients, learning rates or batches."""

    def before_train(self, trainer: Trainer) -> None:
        """Called once, after a resume and before the first step."""

    def after_step(self, trainer: Trainer) -> None:
        """Called after every optimizer step; `trainer.iteration` counts it already."""

    def after_train(self, trainer: Trainer) -> None:
        """Called once at the end, also after a stop request, not after an error."""


@dataclass(frozen=True)
class Step:
    """What one step leaves for the hooks. Tensors are on the device and not yet summed over processes."""

    loss: Tensor
    terms: Mapping[str, Tensor]
    grad_norm: Tensor
    lr: float
    num_images: int
    seconds: float
    data_seconds: float
    """The part of `seconds` in which the loop waited for the data loader."""


class Trainer:
    """Optimises `model` for `iterations` steps of `accumulation` micro-batches each.

    `schedule(iteration)` multiplies every parameter group's `initial_lr`. `loader` is endless and starts at the
    iteration to resume from. `clip_norm` None = no clipping. `precision` bf16 runs the forward pass under autocast.
    `prompt_sampling` lets each step see part of the vocabulary, which changes the objective.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        loader: Iterable[Batch],
        vocabulary: Vocabulary,
        iterations: int,
        accumulation: int = 1,
        clip_norm: float | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        ema: Ema | None = None,
        prompt_sampling: PromptSampling | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"train.precision={precision!r} is not one of 'fp32', 'bf16'")
        self.model = model
        self.network = _distribute(model)
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.loader = loader
        self.vocabulary = vocabulary
        self.iterations = iterations
        self.accumulation = accumulation
        self.clip_norm = clip_norm
        self.precision = precision
        self.ema = ema
        self.prompt_sampling = prompt_sampling
        self.hooks = hooks
        self.device = next(model.parameters()).device
        self.iteration = 0
        self.stopping = False
        self.last: Step | None = None

    def train(self, start: int = 0) -> bool:
        """Run from `start` to the last iteration, or to the step in which a stop was asked for; True if complete.

        A stop in the last step leaves to the next start what hooks owe then, such as the last evaluation.
        """
        self.iteration = start
        self.model.train()
        with StopRequest() as self.stop_request, _advice_when_out_of_memory():
            batches = iter(self.loader)
            for hook in self.hooks:
                hook.before_train(self)
            while self.iteration < self.iterations and not self.stopping:
                self.last = self.step(batches)
                self.iteration += 1
                for hook in self.hooks:
                    hook.after_step(self)
            for hook in self.hooks:
                hook.after_train(self)
        return self.iteration >= self.iterations and not self.stopping

    def step(self, batches: Iterator[Batch]) -> Step:
        """One optimizer step: lr, micro-batches, forward, criterion, finite check, backward, clip, update."""
        start = time.perf_counter()
        lr = self.set_lr()
        micro_batches = [next(batches) for _ in range(self.accumulation)]
        data_seconds = time.perf_counter() - start
        micro_batches = [batch.to(self.device, non_blocking=True) for batch in micro_batches]
        vocabulary = self.vocabulary
        if self.prompt_sampling is not None:
            vocabulary, micro_batches = self.prompt_sampling(micro_batches, vocabulary, iteration=self.iteration)
        counts = self.reduce_counts(micro_batches, vocabulary)

        losses, values = [], []
        for index, batch in enumerate(micro_batches):
            with self.gradient_sync(last=index == self.accumulation - 1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    outputs = self.network(batch.images, vocabulary, attention_layers=self.criterion.attention_layers)
                loss, terms = self.criterion(outputs, batch, vocabulary, counts)
                check_finite(loss, terms, iteration=self.iteration, names=batch.names)
                # read here, while the device is idle anyway after the check: later it would wait for the backward pass
                self.stopping = bool(counts["stop_requests"] > 0)
                (loss * distributed.world_size()).backward()  # DDP averages; the loss is a share of the global one
            losses.append(loss.detach())
            values.append(terms)

        max_norm = float("inf") if self.clip_norm is None else self.clip_norm
        grad_norm = clip_grad_norm_(self.model.parameters(), max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model)

        terms = {name: torch.stack([v[name] for v in values]).sum() for name in values[0]}
        num_images = sum(len(batch) for batch in micro_batches)
        seconds = time.perf_counter() - start
        return Step(torch.stack(losses).sum(), terms, grad_norm, lr, num_images, seconds, data_seconds)

    def set_lr(self) -> float:
        """Learning rates of this iteration, from `initial_lr` alone; returns the first group's."""
        factor = self.schedule(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return self.optimizer.param_groups[0]["lr"]

    def reduce_counts(self, micro_batches: Sequence[Batch], vocabulary: Vocabulary) -> dict[str, Tensor]:
        """The criterion's counts, and how many processes were asked to stop, over all micro-batches and processes.

        One all-reduce per step; because every process sees the same number of stop requests, all stop at the same step.
        """
        per_batch = [self.criterion.counts(batch, vocabulary) for batch in micro_batches]
        counts = {name: torch.stack([c[name] for c in per_batch]).sum() for name in per_batch[0]}
        counts["stop_requests"] = torch.tensor(float(self.stop_request), dtype=torch.float64, device=self.device)
        return dict(zip(counts, distributed.reduce_sum(torch.stack(list(counts.values())))))

    def gradient_sync(self, *, last: bool) -> AbstractContextManager:
        """Gradients are summed over processes after the last micro-batch only."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()


def _distribute(model: nn.Module) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


@contextmanager
def _advice_when_out_of_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            "the GPU is out of memory. Lower, in this order: train.accumulation=2 (or 4; same result, less memory), "
            f"train.precision=bf16, model.decoder_checkpoint=true, train.batch_size. ({str(error).splitlines()[0]})"
        ) from error
