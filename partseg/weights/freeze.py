"""Which parameters train: patterns from the model YAML, printed as a table, refused when they match nothing."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import nn

logger = logging.getLogger(__name__)


def set_trainable(
    model: nn.Module, patterns: Sequence[str], *, unused: Collection[str] = (), absent: Collection[str] = ()
) -> list[str]:
    """Train exactly the parameters whose name matches one of `patterns` (shell wildcards); returns their names.

    Parameters in `unused` reach no output and stay frozen, so that DistributedDataParallel waits for no gradient.
    Raises ValueError for a pattern that trains nothing, except of modules that the config left out (`absent`).
    """
    patterns = [pattern for pattern in patterns if pattern.split(".")[0].rstrip("*") not in absent]
    parameters = dict(model.named_parameters())
    counts = dict.fromkeys(patterns, 0)
    chosen = []
    for name, parameter in parameters.items():
        matches = [p for p in patterns if fnmatchcase(name, p)] if name not in unused else []
        for pattern in matches:
            counts[pattern] += 1
        parameter.requires_grad_(bool(matches))
        if matches:
            chosen.append(name)
    idle = [pattern for pattern, count in counts.items() if not count]
    if idle:
        modules = sorted({".".join(name.split(".")[:3]) for name in parameters if name not in unused})
        raise ValueError(
            f"trainable patterns {idle} match no parameter that the model uses; fix `trainable` in the model config. "
            f"Names start with: {', '.join(modules)}"
        )
    logger.info("trainable parameters\n%s", trainable_table(model))
    return chosen


def trainable_table(model: nn.Module) -> str:
    """One line per module: trainable and total number of parameters."""
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        row = rows.setdefault(module_of(name), [0, 0])
        row[0] += parameter.numel() * parameter.requires_grad
        row[1] += parameter.numel()
    rows["total"] = [sum(r[0] for r in rows.values()), sum(r[1] for r in rows.values())]
    width = max(map(len, rows))
    lines = [f"{'module':<{width}}  {'trainable':>12}  {'parameters':>12}"]
    return "\n".join([*lines, *(f"{name:<{width}}  {a:>12,}  {b:>12,}" for name, (a, b) in rows.items())])


def module_of(name: str) -> str:
    """The module a parameter is reported under: CLIP's two towers apart, otherwise the first word of its name."""
    if name.startswith("backbone.clip.visual."):
        return "image tower"
    if name.startswith("backbone.clip."):
        return "text tower"
    return name.split(".")[0]
