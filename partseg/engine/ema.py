"""Averaged weights: shadow <- decay * shadow + (1 - decay) * weights after every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of the trainable parameters; frozen ones equal their average."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"train.ema_decay={decay} is not between 0 and 1, for example 0.999; null switches it off")
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in _trainable(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights."""
        weights = [p.detach() for _, p in _trainable(model)]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1 - self.decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model carries the averaged weights inside the block, its own ones after it."""
        own = {name: p.detach().clone() for name, p in _trainable(model)}
        _copy(self.shadow, model)
        try:
            yield
        finally:
            _copy(own, model)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name."""
        return dict(self.shadow)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over saved averages; KeyError names parameters that are on one side only."""
        if set(state) != set(self.shadow):
            raise KeyError(
                f"averaged weights of other parameters: {sorted(set(state) ^ set(self.shadow))[:5]}; "
                "was the freeze policy changed?"
            )
        for name, value in self.shadow.items():
            value.copy_(state[name])


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


@torch.no_grad()
def _copy(weights: dict[str, Tensor], model: nn.Module) -> None:
    for name, parameter in _trainable(model):
        parameter.copy_(weights[name])
