"""Clocks, medians and the unit in which times are compared across machines."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal

import open_clip
import torch
from torch import Tensor, nn

UNIT_MODEL, UNIT_SIZE = "ViT-B-16", 352

Phases = dict[str, float]
"""Seconds of the parts of one repetition, `total` among them."""


class Clock:
    """Seconds after the device has finished what it was given.

    `wall` is what a user waits for. `cpu` is the processor time of this process, all threads together: it hardly
    depends on what else the machine does, which makes it the one to use (with one thread) on a busy machine.
    """

    def __init__(self, device: torch.device, kind: Literal["wall", "cpu"] = "wall") -> None:
        if kind not in ("wall", "cpu"):
            raise ValueError(f"bench.clock={kind!r} is not 'wall' or 'cpu'")
        self.device = device
        self.read = time.perf_counter if kind == "wall" else time.process_time

    def __call__(self) -> float:
        """The time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.read()


class Stopwatch:
    """Splits a repetition into phases; `total` is their sum."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.phases: Phases = {}
        self._mark = clock()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to `phase`."""
        mark = self.clock()
        self.phases[phase] = self.phases.get(phase, 0.0) + mark - self._mark
        self._mark = mark

    def stop(self) -> Phases:
        """All phases and their sum."""
        return {"total": sum(self.phases.values()), **self.phases}


class LayerTimes:
    """Seconds of the modules whose names match `patterns` (shell wildcards), forward and backward, a sum per pattern.

    What runs again in backward counts there. A module whose inputs have no gradient has no time of its own in backward:
    autograd does not tell when the gradients of its weights are done.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str], *, clock: Clock) -> None:
        self.clock, self.in_backward = clock, False
        self._seconds: Phases = {}
        modules = {name: module for name, module in model.named_modules() if name}
        for pattern in patterns:
            matches = [module for name, module in modules.items() if fnmatchcase(name, pattern)]
            if not matches:
                known = ", ".join(sorted({name.split(".")[0] for name in modules}))
                raise ValueError(f"bench.layers: no module is called {pattern!r}; names start with {known}")
            for module in matches:
                self._watch(module, pattern)

    def take(self) -> Phases:
        """The sums since the last call."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _watch(self, module: nn.Module, pattern: str) -> None:
        started = 0.0

        def start(*_: object, backward: bool = False) -> None:
            nonlocal started
            if backward == self.in_backward:
                started = self.clock()

        def stop(key: str) -> None:
            self._seconds[key] = self._seconds.get(key, 0.0) + self.clock() - started

        def stop_forward(*_: object) -> None:
            if not self.in_backward:
                stop(f"{pattern}, forward")

        def stop_backward(_: nn.Module, grad_inputs: Sequence[Tensor | None], __: object) -> None:
            if any(grad is not None for grad in grad_inputs):
                stop(f"{pattern}, backward")

        module.register_forward_pre_hook(start)
        module.register_forward_hook(stop_forward)
        module.register_full_backward_pre_hook(partial(start, backward=True))
        module.register_full_backward_hook(stop_backward)


class Unit:
    """One unit of time: a forward pass of open_clip's ViT-B/16 image tower, all 12 blocks, 352 x 352, batch 1, fp32."""

    def __init__(self, clock: Clock) -> None:
        config = copy.deepcopy(open_clip.get_model_config(UNIT_MODEL))
        assert config is not None
        config["vision_cfg"]["image_size"] = UNIT_SIZE
        self.clock = clock
        self.tower = open_clip.CLIP(**config).visual.to(clock.device).eval()
        self.image = torch.rand(1, 3, UNIT_SIZE, UNIT_SIZE, device=clock.device)

    @torch.inference_mode()
    def __call__(self) -> float:
        """Seconds of one pass."""
        start = self.clock()
        self.tower(self.image)
        return self.clock() - start


def interleave(
    work: Callable[[], Phases], unit: Callable[[], float], *, repeats: int, warmup: int
) -> dict[str, object]:
    """Median seconds and units of `work`, which alternates with `unit`.

    Each repetition is divided by the mean of the units before and after it, so that a machine that others use, or that
    changes its clock, changes both.
    """
    for _ in range(warmup):
        unit()
        work()
    units, phases = [unit()], []
    for _ in range(repeats):
        phases.append(work())
        units.append(unit())
    local_units = [(before + after) / 2 for before, after in zip(units, units[1:])]
    return {
        "seconds": medians(phases),
        "units": medians([{k: v / u for k, v in p.items()} for p, u in zip(phases, local_units)]),
        "lowest_units": min(p["total"] / u for p, u in zip(phases, local_units)),
        "highest_units": max(p["total"] / u for p, u in zip(phases, local_units)),
        "unit_seconds": statistics.median(units),
        "repeats": repeats,
    }


def medians(phases: Sequence[Mapping[str, float]]) -> Phases:
    """Median of each phase over the repetitions."""
    return {key: statistics.median(p[key] for p in phases) for key in phases[0]}
