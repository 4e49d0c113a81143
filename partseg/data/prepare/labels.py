"""Label arrays to PNG bytes, checks of source pictures, and the per-split lists that the layouts carry."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from partseg.data.io import read_image
from partseg.data.prepare.conversion import Item
from partseg.vocabulary import Vocabulary


def png_bytes(labels: np.ndarray) -> bytes:
    """A grey PNG of uint8 or uint16 labels [h, w]; equal labels give equal bytes."""
    if labels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"labels must be uint8 or uint16, got {labels.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, format="PNG")
    return buffer.getvalue()


def check_size(path: Path, shape: tuple[int, ...], image_path: Path) -> None:
    """The photo decodes to its last row and has the annotation's size (rows, columns); ValueError otherwise."""
    width, height = read_image(image_path).size
    if shape[:2] != (height, width):
        raise ValueError(
            f"{path} is {shape[0]}x{shape[1]} (rows x columns) but its photo {image_path} is {height}x{width}; "
            f"they are not of the same release, fetch both again"
        )


def ids_in(labels: np.ndarray, none: int) -> list[int]:
    """Label ids in the map, ascending, without `none`."""
    return [int(k) for k in np.unique(labels) if k != none]


def label_counts(items: Sequence[Item], split: str, level: str, suffix: str) -> bytes:
    """`{"<name>.png": [ids], ...}` as the label_count files of OV-PARTS hold it."""
    return json.dumps({f"{item.name}{suffix}": item.classes[level] for item in items if item.split == split}).encode()


def vocabulary(name: str) -> Vocabulary:
    """One of the shipped vocabularies."""
    with resources.as_file(_shipped(name)) as path:
        return Vocabulary.from_yaml(path)


def shipped_yaml(name: str) -> dict:
    """A shipped map of raw names or ids."""
    return yaml.safe_load(_shipped(name).read_text(encoding="utf-8"))


def _shipped(name: str) -> resources.abc.Traversable:  # type: ignore[name-defined]
    return resources.files("partseg.data") / "vocabularies" / f"{name}.yaml"
