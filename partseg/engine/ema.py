"""Averaged weights: average <- decay * average + (1 - decay) * weights after every step, buffers included."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

COUNT = "n_averaged"


class Ema:
    """Exponential moving average of a model, in `module`; frozen parameters are shared with the model, not copied."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"train.ema_decay={decay} is not between 0 and 1, for example 0.999; null switches it off")
        self._averaged = AveragedModel(model)
        self._average = get_ema_multi_avg_fn(decay)
        for own, averaged in zip(model.parameters(), self.module.parameters(), strict=True):
            if not own.requires_grad:
                averaged.data = own.data
        self._averaged.requires_grad_(False)
        self._trained = {name for name, p in model.named_parameters() if p.requires_grad}

    @property
    def module(self) -> nn.Module:
        """The model with averaged weights, for evaluation."""
        return self._averaged.module

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights; the first time it becomes them.

        AveragedModel's own update sends its count to the device for each kind of tensor, and waits for that.
        """
        averaged, current = ([*each.parameters(), *each.buffers()] for each in (self.module, model))
        for kind in {each.dtype for each in averaged}:
            pairs = [(a, c.detach()) for a, c in zip(averaged, current, strict=True) if a.dtype == kind]
            if self._averaged.n_averaged and (kind.is_floating_point or kind.is_complex):
                self._average([a for a, _ in pairs], [c for _, c in pairs], 0)
                continue
            for own, new in pairs:  # counts, positions and flags are copied, not rounded down
                own.copy_(new)
        self._averaged.n_averaged += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Averages of trained parameters and of buffers by name, and how many steps are in them."""
        frozen = {name for name, _ in self.module.named_parameters()} - self._trained
        state = {name: value for name, value in self.module.state_dict().items() if name not in frozen}
        return {**state, COUNT: self._averaged.n_averaged}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved averages; KeyError names those that are on one side only."""
        own = self.state_dict()
        # checkpoints of before 2026-12 hold parameters only, and no count
        missing = {name for name in own if name not in state and name in self._trained}
        strange = set(state) - set(own)
        if missing or strange:
            raise KeyError(
                f"averaged weights of other parameters: {sorted(missing | strange)[:5]}; was the freeze policy changed?"
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name] if name in state else torch.ones_like(value) if name == COUNT else value)
