"""Measurements as lines of text, alone and two files side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

GIB = 2**30


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A table per measurement: seconds beside units, bytes in GiB."""
    yield f"{result['params_m']:.1f} M parameters, {result['trainable_m']:.1f} M trained, on {result['device']}"
    for name, figures in result["measurements"].items():
        yield ""
        yield f"{name}  {_prompts(figures)}"
        units = figures.get("units", {})
        for phase, seconds in figures.get("seconds", {}).items():
            yield f"  {phase:<28}{seconds:10.4f} s" + (f"{units[phase]:10.3f} units" if phase in units else "")
        if "unit_seconds" in figures:
            spread = f"{figures['lowest_units']:.2f} to {figures['highest_units']:.2f}"
            yield f"  one unit was {figures['unit_seconds']:.3f} s; {figures['repeats']} repetitions, {spread} units"
        for kind, count in figures.get("bytes", {}).items():
            if count is not None:
                yield f"  {kind:<28}{count / GIB:10.3f} GiB"
    if result["memory_gb"] is not None:
        yield f"\nGPU memory at the config's batch size: {result['memory_gb']:.2f} GB"


def compare(before: str | Path, after: str | Path) -> Iterator[str]:
    """Every figure that both files hold, and after / before; units where there are some, seconds otherwise."""
    old, new = (dict(_figures(json.loads(Path(path).read_text(encoding="utf-8")))) for path in (before, after))
    yield f"{'':<52}{'before':>12}{'after':>12}{'ratio':>8}"
    for key in old:
        if key in new:
            ratio = f"{new[key] / old[key]:8.3f}" if old[key] else " " * 8
            yield f"{key:<52}{old[key]:12.4g}{new[key]:12.4g}{ratio}"
    for words, keys in (("before", [k for k in old if k not in new]), ("after", [k for k in new if k not in old])):
        if keys:
            yield f"only in the file {words}: {', '.join(keys)}"


def _figures(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, figures in result["measurements"].items():
        kind = "units" if "units" in figures else "seconds"
        for phase, value in figures.get(kind, {}).items():
            yield f"{name}: {phase} ({kind})", value
        for label, count in figures.get("bytes", {}).items():
            if count is not None:
                yield f"{name}: {label} (GiB)", count / GIB


def _prompts(figures: Mapping[str, Any]) -> str:
    if "object_parts" not in figures:
        return ""
    return "({object_parts} object-parts, {parts} parts, {objects} objects)".format(**figures)
