"""Optimizers with parameter groups chosen by pattern, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

GROUP_KEYS = {"pattern", "lr_factor", "weight_decay"}


def param_groups(
    model: nn.Module, *, lr: float, weight_decay: float, groups: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Trainable parameters as optimizer groups; the first matching pattern decides, the rest share one group.

    `groups` entries are `{pattern: "decoder.*", lr_factor: 0.1, weight_decay: 0.0}`; shell patterns over full parameter
    names, both settings optional. ValueError when a pattern decides nothing.
    """
    rules = [*groups, {"pattern": "*"}]
    for rule in rules:
        if "pattern" not in rule or set(rule) - GROUP_KEYS:
            raise ValueError(
                f"optimizer.groups entry {dict(rule)} must hold 'pattern' and may hold lr_factor, weight_decay"
            )
    chosen: list[list[nn.Parameter]] = [[] for _ in rules]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            chosen[next(i for i, r in enumerate(rules) if fnmatchcase(name, r["pattern"]))].append(parameter)
    idle = [rule["pattern"] for rule, params in zip(groups, chosen) if not params]
    if idle:
        raise ValueError(f"optimizer.groups: patterns {idle} decide no trainable parameter; see the table of the model")
    return [
        {
            "params": params,
            "initial_lr": lr * rule.get("lr_factor", 1.0),
            "lr": lr * rule.get("lr_factor", 1.0),
            "weight_decay": rule.get("weight_decay", weight_decay),
        }
        for rule, params in zip(rules, chosen)
        if params
    ]


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    groups: Sequence[Mapping[str, Any]] = (),
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; the fused kernel where torch has one."""
    params = param_groups(model, lr=lr, weight_decay=weight_decay, groups=groups)
    fused = all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for g in params for p in g["params"])
    return torch.optim.AdamW(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, fused=fused)  # type: ignore[arg-type]


def sgd(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    groups: Sequence[Mapping[str, Any]] = (),
) -> torch.optim.Optimizer:
    """SGD with momentum over the trainable parameters."""
    params = param_groups(model, lr=lr, weight_decay=weight_decay, groups=groups)
    return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay)


def poly(
    iteration: int, *, iterations: int, power: float = 0.9, warmup_iterations: int = 0, warmup_factor: float = 1.0
) -> float:
    """Factor (1 - iteration / iterations) ** power, times a linear warm-up from `warmup_factor` to 1."""
    return warmup(iteration, warmup_iterations, warmup_factor) * (1 - iteration / iterations) ** power


def cosine(
    iteration: int, *, iterations: int, end_factor: float = 0.0, warmup_iterations: int = 0, warmup_factor: float = 1.0
) -> float:
    """Factor from 1 to `end_factor` along half a cosine, times a linear warm-up from `warmup_factor` to 1."""
    fall = (1 + math.cos(math.pi * iteration / iterations)) / 2
    return warmup(iteration, warmup_iterations, warmup_factor) * (end_factor + (1 - end_factor) * fall)


def steps(
    iteration: int,
    *,
    iterations: int,
    at: Sequence[float],
    factor: float = 0.1,
    warmup_iterations: int = 0,
    warmup_factor: float = 1.0,
) -> float:
    """Times `factor` at each share of the iterations in `at`, times a linear warm-up from `warmup_factor` to 1."""
    passed = sum(iteration >= share * iterations for share in at)
    return warmup(iteration, warmup_iterations, warmup_factor) * factor**passed


def constant(iteration: int, *, warmup_iterations: int = 0, warmup_factor: float = 1.0) -> float:
    """Factor 1 after the warm-up."""
    return warmup(iteration, warmup_iterations, warmup_factor)


def warmup(iteration: int, iterations: int, factor: float) -> float:
    """`factor` at iteration 0, 1 from `iterations` on, linear between."""
    return 1.0 if iteration >= iterations else factor + (1 - factor) * iteration / iterations
