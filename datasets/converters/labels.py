"""Label arrays to PNG bytes, checks of source pictures, and the per-split lists that the layouts carry."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from converters.conversion import Item
from partseg.data.io import read_image


def png_bytes(labels: np.ndarray) -> bytes:
    """A grey PNG of uint8 or uint16 labels [h, w]; equal labels give equal bytes."""
    if labels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"labels must be uint8 or uint16, got {labels.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, format="PNG")
    return buffer.getvalue()


def photo_size(path: Path) -> tuple[int, int]:
    """(rows, columns) of a photo, which is decoded to its last row on the way; ValueError when it is damaged."""
    photo = read_image(path)
    return photo.height, photo.width


def check_size(path: Path | str, size: tuple[int, ...], photo: Path) -> None:
    """ValueError when an annotation of `size` (rows, columns) and its photo differ."""
    expected = photo_size(photo)
    if tuple(size) != expected:
        raise ValueError(
            f"{path} is {size[0]}x{size[1]} (rows x columns) but its photo {photo} is {expected[0]}x{expected[1]}; "
            f"they are not of the same release, fetch both again"
        )


def ids_in(labels: np.ndarray, none: int) -> list[int]:
    """Label ids in the map, ascending, without `none`."""
    return [int(k) for k in np.flatnonzero(np.bincount(labels.ravel())) if k != none]


def label_counts(items: Sequence[Item], split: str, level: str, suffix: str) -> bytes:
    """`{"<name>.png": [ids], ...}` as the label_count files of OV-PARTS hold it."""
    return json.dumps({f"{item.name}{suffix}": item.classes[level] for item in items if item.split == split}).encode()


def raw_names(name: str) -> dict:
    """A map from raw names or ids to ours, from the YAML file of that name beside this file."""
    return yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8"))
