"""What a loss term is given and what it must offer; `Criterion` knows nothing else about its terms."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from partseg.structures import Batch


@dataclass(frozen=True)
class LossInputs:
    """One micro-batch as the terms see it: the system's outputs, whatever they are, and the batch.

    `shared` keeps what several terms need, for this call only.
    """

    outputs: Any
    batch: Batch
    _memo: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def shared(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Result of `compute`, made at the first request for `key` and handed out again at the next ones."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]


class Term(Protocol):
    """One summand of the loss. It owns no parameters and no state.

    The trainer sums `counts` over micro-batches and ranks; `__call__` divides this micro-batch's sum by them, so that
    the values of all micro-batches and ranks add up to the value over the global batch. Besides the term's own keys,
    the counts it is called with hold `images` and `batches` (micro-batches over all ranks).
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the outputs that the term uses; the system computes no others."""
        ...

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What this micro-batch adds to each denominator of the term, from the labels alone (float64 scalars)."""
        ...

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        """Scalar value of the term, unweighted."""
        ...


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Losses are summed in float32 at least, also when the network ran in a 16-bit type."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def share_of(count: Tensor) -> Tensor:
    """1 / count, and 0 for a count of 0: a mean over nothing adds nothing."""
    return torch.where(count > 0, 1.0 / count.clamp(min=1), torch.zeros_like(count))
