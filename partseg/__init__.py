"""Open-vocabulary part segmentation. `partseg.load(name).predict(image, vocabulary)` is the notebook entry."""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"
__all__ = ["Phrases", "Segmenter", "Vocabulary", "__version__", "load"]

_HOMES = {
    "load": "partseg.api",
    "Segmenter": "partseg.api",
    "Vocabulary": "partseg.vocabulary.names",
    "Phrases": "partseg.vocabulary.phrases",
}


def __getattr__(name: str) -> Any:
    """`partseg.load` and the others without making `import partseg` load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'partseg' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
