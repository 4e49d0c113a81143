"""Clocks, medians and the unit in which times are compared across machines."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import open_clip
import torch

UNIT_MODEL, UNIT_SIZE = "ViT-B-16", 352

Phases = dict[str, float]
"""Seconds of the parts of one repetition, `total` among them."""


def now(device: torch.device) -> float:
    """Seconds, after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Splits a repetition into phases; `total` is their sum."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.phases: Phases = {}
        self._mark = now(device)

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to `phase`."""
        mark = now(self.device)
        self.phases[phase] = self.phases.get(phase, 0.0) + mark - self._mark
        self._mark = mark

    def stop(self) -> Phases:
        """All phases and their sum."""
        return {"total": sum(self.phases.values()), **self.phases}


class Unit:
    """One unit of time: a forward pass of open_clip's ViT-B/16 image tower, all 12 blocks, 352 x 352, batch 1, fp32."""

    def __init__(self, device: torch.device) -> None:
        config = copy.deepcopy(open_clip.get_model_config(UNIT_MODEL))
        assert config is not None
        config["vision_cfg"]["image_size"] = UNIT_SIZE
        self.device = device
        self.tower = open_clip.CLIP(**config).visual.to(device).eval()
        self.image = torch.rand(1, 3, UNIT_SIZE, UNIT_SIZE, device=device)

    @torch.inference_mode()
    def __call__(self) -> float:
        """Seconds of one pass."""
        start = now(self.device)
        self.tower(self.image)
        return now(self.device) - start


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
