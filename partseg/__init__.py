"""Open-vocabulary part segmentation. `partseg.load(checkpoint).predict(image, vocabulary)` is the notebook entry."""

from __future__ import annotations

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`partseg.load` without making `import partseg` load torch."""
    if name != "load":
        raise AttributeError(f"module 'partseg' has no attribute {name!r}")
    from partseg.api import load

    return load
