"""The training objective: weighted terms -> one scalar that is the same for any number of ranks and micro-batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from partseg.losses.term import LossInputs, Term
from partseg.structures import Batch
from partseg.utils import distributed


class NonFiniteLossError(FloatingPointError):
    """The loss is NaN or infinite; the message holds the iteration, every term and the images."""


class Criterion:
    """Weighted sum of terms (PartCLIPSeg eq. 10).

    `terms` maps a name to `{weight, term}`. A term of weight 0 is never called. `normalise`: `global` divides by counts
    summed over micro-batches and ranks; `process` lets each micro-batch of each rank take its own means and averages
    these (what the authors' code does, where the loss depends on the number of GPUs).
    """

    def __init__(
        self, *, terms: Mapping[str, Mapping[str, Any]], normalise: Literal["global", "process"] = "global"
    ) -> None:
        if normalise not in ("global", "process"):
            raise ValueError(f"criterion.normalise is {normalise!r}; allowed are 'global' and 'process'")
        for name, entry in terms.items():
            if set(entry) != {"weight", "term"}:
                raise ValueError(f"criterion.terms.{name} must hold 'weight' and 'term', it holds {sorted(entry)}")
            if not (math.isfinite(entry["weight"]) and entry["weight"] >= 0):
                raise ValueError(f"criterion.terms.{name}.weight is {entry['weight']}; it must be 0 or positive")
        self.weights: dict[str, float] = {n: float(e["weight"]) for n, e in terms.items() if e["weight"] > 0}
        self.terms: dict[str, Term] = {n: terms[n]["term"] for n in self.weights}
        self.normalise = normalise
        if not self.terms:
            raise ValueError(f"all weights in criterion.terms are 0 ({sorted(terms)}); give one a positive weight")

    @property
    def reads(self) -> frozenset[str]:
        """Names of the outputs that the active terms use, for the system's forward pass."""
        return frozenset(name for term in self.terms.values() for name in term.reads)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Denominators of all active terms, from the labels alone; to be summed over micro-batches and ranks."""
        one = torch.ones((), dtype=torch.float64, device=batch.object_part.device)
        counts = {"images": one * len(batch), "batches": one}
        for name, term in self.terms.items():
            counts |= {f"{name}/{key}": value for key, value in term.counts(batch).items()}
        return counts

    def __call__(self, outputs: Any, batch: Batch, counts: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch and the unweighted, detached value of each active term.

        Both add up to their global values when summed over micro-batches and ranks.
        """
        per_process = self.normalise == "process"
        denominators = self.counts(batch) if per_process else counts
        inputs = LossInputs(outputs, batch)
        loss = torch.zeros((), device=batch.images.device)
        values: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            # Losses are summed in float32 whatever the network ran in; autocast would undo that in every product.
            with torch.autocast(batch.object_part.device.type, enabled=False):
                value = term(inputs, _counts_of(name, denominators))
            if per_process:
                value = value / counts["batches"].to(value.dtype)
            loss = loss + self.weights[name] * value
            values[name] = value.detach()
        return loss, values


def _counts_of(name: str, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = {key.removeprefix(f"{name}/"): value for key, value in counts.items() if key.startswith(f"{name}/")}
    return {"images": counts["images"], "batches": counts["batches"], **own}


def loss_of(model: nn.Module, criterion: Criterion, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Any]:
    """Loss, terms and outputs of one batch outside a trainer; counts are summed over all processes."""
    outputs = model(batch, reads=criterion.reads)
    counts = {name: distributed.reduce_sum(count) for name, count in criterion.counts(batch).items()}
    return (*criterion(outputs, batch, counts), outputs)


def check_finite(loss: float, terms: Mapping[str, Tensor], *, iteration: int, names: Sequence[str]) -> None:
    """Raise NonFiniteLossError when `loss` is NaN or infinite. Call it before anything is written or updated.

    `names` are the image files of the step.
    """
    if math.isfinite(loss):
        return
    listed = ", ".join(f"{name}={term.detach().item():.6g}" for name, term in terms.items())
    raise NonFiniteLossError(
        f"the loss is {loss} at iteration {iteration} ({listed}); images: {', '.join(names)}. "
        "The last checkpoint is untouched: resume from it with a lower optimizer.lr or train.precision=fp32"
    )
