"""The training loop. Everything a run does to the weights is in `step`; hooks watch and write files.

Called by tools/train_net.py with built objects; calls the model, the criterion and nothing else of partseg.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.profiler import record_function

from partseg.engine.ema import Ema
from partseg.engine.prompts import PromptSampling
from partseg.engine.signals import StopRequest
from partseg.losses.criterion import Criterion, check_finite
from partseg.structures import Batch
from partseg.utils import distributed
from partseg.utils.devices import Precision, autocast, check_precision
from partseg.vocabulary.names import Vocabulary

SMALLEST_SCALE = 2.0**-10
"""A loss that overflows when it is scaled down a thousand times is no matter of fp16's range."""


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
    iteration to resume from. `clip_norm` None = no clipping. `precision` bf16 and fp16 run the forward pass under
    autocast; fp16 scales the loss (Micikevicius et al., Mixed Precision Training, 2018) and leaves out steps whose
    gradients overflow.
    `prompt_sampling` lets each step see part of the vocabulary, which changes the objective. What a network draws in
    training (dropped paths, sampled points) follows from (`seed`, step, rank); None: from what was drawn before.
    `vocabulary` is kept with
    checkpoints; what a batch is in is its own. `phase` is entered around the parts of a step: a profiler sees them.
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
        precision: Precision = "fp32",
        ema: Ema | None = None,
        prompt_sampling: PromptSampling | None = None,
        seed: int | None = None,
        hooks: Sequence[Hook] = (),
        phase: Callable[[str], AbstractContextManager] = record_function,
    ) -> None:
        self.device = next(model.parameters()).device
        check_precision(precision, device=self.device, key="train.precision")
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
        self.seed = seed
        self.hooks = hooks
        self._phase = phase
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.stop_request = StopRequest()
        self.iteration = 0
        self.stopping = False
        self.last: Step | None = None

    def train(self, start: int = 0) -> bool:
        """Run from `start` to the last iteration, or to the step in which a stop was asked for; True if complete.

        A stop in the last step leaves to the next start what hooks owe then, such as the last evaluation.
        """
        self.iteration = start
        self.model.train()
        with self.stop_request, self._advice_when_out_of_memory():
            batches = iter(self.loader)
            for hook in self.hooks:
                hook.before_train(self)
            while self.iteration < self.iterations and not self.stopping:
                self.last = self.step(batches)
                self.iteration += 1
                distributed.at(f"the hooks after step {self.iteration}")
                for hook in self.hooks:
                    hook.after_step(self)
            for hook in self.hooks:
                hook.after_train(self)
        return self.iteration >= self.iterations and not self.stopping

    def step(self, batches: Iterator[Batch]) -> Step:
        """One optimizer step: lr, micro-batches, forward, criterion, backward, finite check, clip, update.

        The loop waits for the device once, to read the losses before they change a weight; everything else is queued.
        """
        start = time.perf_counter()
        if self.seed is not None:
            drawn_from = np.random.SeedSequence([self.seed, self.iteration, distributed.rank()])
            torch.manual_seed(int(drawn_from.generate_state(1, np.uint64)[0]))
        lr = self.set_lr()
        with self.phase("data"):
            micro_batches = [next(batches) for _ in range(self.accumulation)]
        data_seconds = time.perf_counter() - start
        if self.prompt_sampling is not None:  # of labels that are still on the host, where looking at them is free
            with self.phase("prompt sampling"):
                micro_batches = self.prompt_sampling(micro_batches, iteration=self.iteration)
        with self.phase("transfer"):
            micro_batches = [batch.to(self.device, non_blocking=True) for batch in micro_batches]
        with self.phase("loss counts"):
            counts = self.reduce_counts(micro_batches)
        stops = distributed.reduce_sum(torch.full((), float(self.stop_request), device=self.device))

        losses, values = [], []
        for index, batch in enumerate(micro_batches):
            with self.gradient_sync(last=index == self.accumulation - 1):
                loss, terms = self.loss(batch, counts)
                with self.phase("backward"):
                    # DDP averages gradients; the loss is a share of the global one
                    self.scaler.scale(_reaching_all(loss, self.model) * distributed.world_size()).backward()
            losses.append(loss.detach())
            values.append(terms)

        with self.phase("wait"):
            *read, stop = torch.stack([*losses, stops]).tolist()
        for value, terms, batch in zip(read, values, micro_batches):
            check_finite(value, terms, iteration=self.iteration, names=batch.names)
        # every process sees the same number of stop requests, so that all stop at the same step
        self.stopping = stop > 0

        with self.phase("optimiser"):
            grad_norm = self.update()

        names = dict.fromkeys(name for terms in values for name in terms)
        terms = {name: torch.stack([v[name] for v in values if name in v]).sum() for name in names}
        num_images = sum(len(batch) for batch in micro_batches)
        seconds = time.perf_counter() - start
        return Step(torch.stack(losses).sum(), terms, grad_norm, lr, num_images, seconds, data_seconds)

    def phase(self, name: str) -> AbstractContextManager:
        """A part of the step: entered by profilers, and told to the processes that wait for this one."""
        distributed.at(f"{name} of step {self.iteration + 1}")
        return self._phase(name)

    def update(self) -> Tensor:
        """Clip, change the weights and their averages; returns the gradient norm, 0 for a step that fp16 leaves out."""
        max_norm = float("inf") if self.clip_norm is None else self.clip_norm
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.model.parameters(), max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model)
        if not self.scaler.is_enabled():
            return norm
        if self.scaler.get_scale() < SMALLEST_SCALE:
            raise FloatingPointError(
                f"gradients are not finite at iteration {self.iteration}, however little the loss is scaled; nothing "
                "was saved, the last checkpoint is intact: resume with a lower optimizer.lr or train.precision=fp32"
            )
        return torch.where(norm.isfinite(), norm, 0)

    def loss(self, batch: Batch, counts: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward pass and criterion of one micro-batch."""
        with self.phase("network"), autocast(self.device, self.precision):
            outputs = self.network(batch, reads=self.criterion.reads)
        with self.phase("loss"):
            return self.criterion(outputs, batch, counts)

    def set_lr(self) -> float:
        """Learning rates of this iteration, from `initial_lr` alone; returns the first group's."""
        factor = self.schedule(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return self.optimizer.param_groups[0]["lr"]

    def reduce_counts(self, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The criterion's counts over all micro-batches and processes; one all-reduce per step."""
        per_batch = [self.criterion.counts(batch) for batch in micro_batches]
        counts = {name: torch.stack([c[name] for c in per_batch]).sum() for name in per_batch[0]}
        return dict(zip(counts, distributed.reduce_sum(torch.stack(list(counts.values())))))

    def gradient_sync(self, *, last: bool) -> AbstractContextManager:
        """Gradients are summed over processes after the last micro-batch only."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    @contextmanager
    def _advice_when_out_of_memory(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            own = "".join(f"{advice}, " for advice in getattr(self.model, "saves_memory", ()))
            raise MemoryError(
                "the GPU is out of memory. Set, in this order: train.accumulation=2 (or 4; same result, less memory), "
                f"train.precision=bf16, {own}train.batch_size. ({str(error).splitlines()[0]})"
            ) from error


def _distribute(model: nn.Module) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    # torch 2.15 gave the option another name
    names = signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    # buffers are constants, which need no broadcast in every step, but for the statistics of batch normalisation
    changing: dict[str, Any] = {option: any(isinstance(module, _NormBase) for module in model.modules())}
    # no static_graph: micro-batches of a mixture and sampled prompts take other branches from step to step
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **changing)


def _reaching_all(loss: Tensor, model: nn.Module) -> Tensor:
    """The loss, plus zero times every trainable parameter that it does not depend on.

    What a step does not use (a head that no term reads, a branch of another data set) then has a gradient of 0 instead
    of none, on one process as on many, where DistributedDataParallel would wait for it.
    """
    reached: set[int] = set()
    seen: set[Node] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            reached.add(id(variable))
        waiting += [following for following, _ in node.next_functions]
    idle = [p for p in model.parameters() if p.requires_grad and id(p) not in reached]
    return loss + torch.stack([p.sum() for p in idle]).sum() * 0 if idle else loss
