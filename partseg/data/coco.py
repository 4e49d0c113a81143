"""COCO files: entries checked once, when they are read; polygons and run lengths to masks.

Polygons of the wild hold anything, and pycocotools ends the process on some of it: what reaches it is checked here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco_mask

from partseg.data.io import file_stem, read_json

FARTHEST = 100_000
"""Largest coordinate of a polygon in pixels. No format of ours holds a wider picture."""

LONGEST = 1_000_000
"""Longest outline in pixels. pycocotools takes 40 bytes for each (measured) and does not ask whether it got them."""

_WORDS = {int: "a whole number", str: "text", type(None): "null"}
_FIELDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "images": {
        "id": (int, str),
        "file_name": (str,),
        "height": (int, type(None)),
        "width": (int, type(None)),
    },
    "annotations": {"image_id": (int, str), "category_id": (int,)},
    "categories": {"id": (int,), "name": (str, type(None))},
}
"""What is read of each entry; an entry may lack what may be null."""

_log = logging.getLogger(__name__)


# Files ----------------------------------------------------------------------------------------------------------------
def read_coco(path: str | Path, *, optional: Collection[str] = ()) -> dict[str, Any]:
    """A COCO file's dict; ValueError names the entry that lacks a key or holds a value of another type.

    Entries may also lack the `optional` keys.
    """
    data = read_json(path)
    lacking = [key for key in ("images", "annotations") if not isinstance(data, dict) or key not in data]
    if lacking:
        raise ValueError(f"{path} is not a COCO file: it lacks {lacking}")
    data = {**data, "categories": data.get("categories") or []}
    for kind, fields in _FIELDS.items():
        if not isinstance(data[kind], list):
            raise ValueError(f"{path} is not a COCO file: {kind!r} is {type(data[kind]).__name__}, not a list")
        for number, entry in enumerate(data[kind]):
            if not isinstance(entry, dict):
                raise ValueError(f"{path}: {kind}[{number}] is {type(entry).__name__}, not an object with keys")
            for key, types in fields.items():
                if key in optional and key not in entry:
                    continue
                if type(entry.get(key)) not in types:
                    raise ValueError(f"{path}: {kind}[{number}] {_fault(entry, key, types)}; fetch the file again")
    return data


def _fault(entry: Mapping[str, Any], key: str, types: tuple[type, ...]) -> str:
    which = f"(id {entry['id']!r:.40}) " if key != "id" and isinstance(entry.get("id"), int | str) else ""
    if key not in entry:
        return f"{which}has no {key!r}"
    return f"{which}has {key} = {entry[key]!r:.40}, it must be {' or '.join(_WORDS[kind] for kind in types)}"


def coco_stems(data: Mapping[str, Any], path: str | Path) -> dict[Any, str]:
    """Image id -> file name without folder and suffix; ValueError when two images share either."""
    stems = {image["id"]: file_stem(image["file_name"]) for image in data["images"]}
    if len(stems) < len(data["images"]) or len(set(stems.values())) < len(stems):
        names = [file_stem(image["file_name"]) for image in data["images"]]
        repeated = sorted({name for name in names if names.count(name) > 1})[:3]
        raise ValueError(f"{path} lists images twice (same id or same name {repeated}); image names must be unique")
    return stems


# Segmentations --------------------------------------------------------------------------------------------------------
def repair_segmentation(segmentation: Any) -> tuple[Any, int]:
    """(segmentation without polygons that are none, number of polygons left out); None when nothing is left.

    PartImageNet and ADE exports hold "polygons" of two or four numbers, which pycocotools refuses or reads as boxes.
    """
    if isinstance(segmentation, Mapping):
        return segmentation, 0
    polygons = list(segmentation) if isinstance(segmentation, list | tuple) else []
    if polygons and all(isinstance(value, int | float) for value in polygons):
        polygons = [polygons]
    kept = [polygon for polygon in polygons if _is_polygon(polygon)]
    return (kept or None), len(polygons) - len(kept)


def _is_polygon(points: Any) -> bool:
    """Pairs of numbers around an area, no farther out and no longer around than any picture."""
    if not isinstance(points, Sequence) or len(points) < 6 or len(points) % 2:
        return False
    try:
        numbers = np.asarray(points)
    except ValueError:  # lists of different lengths
        return False
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or not np.abs(numbers).max() <= FARTHEST:
        return False
    x, y = numbers[0::2].astype(np.float64), numbers[1::2].astype(np.float64)
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    if np.maximum(np.abs(next_x - x), np.abs(next_y - y)).sum() > LONGEST:
        return False
    return bool(np.dot(x, next_y) != np.dot(y, next_x))


def run_lengths(rle: Mapping[str, Any]) -> Int[np.ndarray, " runs"]:
    """Lengths of a COCO RLE's runs, plain or compressed, of 0 and 1 in turn; ValueError unless they fill its size.

    pycocotools itself hands out memory as it finds it where the runs end early.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n >= 0 for n in size)):
        raise ValueError(f"its RLE has size {size!r:.40}, it must be [height, width]")
    if isinstance(counts, str | bytes):
        lengths = _decompress(counts)
    else:
        lengths = np.asarray(counts if isinstance(counts, list | tuple) and counts else [-1])
    area = size[0] * size[1]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or lengths.min() < 0 or lengths.max() > area:
        raise ValueError("its RLE has counts that are no run lengths")
    if lengths.sum() != area:
        raise ValueError(f"the runs of its RLE fill {lengths.sum()} of {area} pixels")
    return lengths


def _decompress(text: str | bytes) -> np.ndarray:
    """int64 run lengths of COCO's text counts; [-1] where the text is none.

    A number is written as characters of 5 bits from the lowest up, bit 5 says that another follows; from the fourth
    number on it is the difference to the number two before.
    """
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return np.array([-1])
    ends = np.flatnonzero((codes & 32) == 0) + 1
    starts = np.concatenate([[0], ends[:-1]])
    digits = ends - starts
    if digits.max() > 7:
        return np.array([-1])
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, digits))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends - 1] & 16, 1 << (5 * digits), 0)  # two's complement
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def usable_segmentation(annotation: Mapping[str, Any], skipped: dict[str, int]) -> Any:
    """The annotation's segmentation without broken polygons, or None; what is left out is counted in `skipped`.

    The first annotation with a broken polygon or RLE is named in the log.
    """
    reason = None
    segmentation, broken = repair_segmentation(annotation.get("segmentation"))
    if broken and not skipped.get("broken_polygon"):
        what = "a polygon without area or beyond any picture; it and others like it are left out"
        _log.warning("annotation %s has %s", annotation.get("id"), what)
    skipped["broken_polygon"] = skipped.get("broken_polygon", 0) + broken
    if annotation.get("iscrowd"):
        reason = "crowd"
    elif annotation.get("area", 1) == 0:
        reason = "zero_area"
    elif segmentation is None:
        reason = "empty_annotation"
    elif isinstance(segmentation, Mapping):
        try:
            run_lengths(segmentation)
        except ValueError as error:
            reason = "broken_rle"
            if reason not in skipped:
                _log.warning("annotation %s and others like it are left out: %s", annotation.get("id"), error)
    if reason is not None:
        skipped[reason] = skipped.get(reason, 0) + 1
        return None
    return segmentation


def decode_mask(segmentation: Any, *, height: int, width: int, path: str | Path) -> Bool[np.ndarray, "height width"]:
    """bool mask, column-major, of polygons or a COCO RLE; `path` is for the error message only."""
    try:
        if isinstance(segmentation, Mapping):
            runs = run_lengths(segmentation)
            if list(segmentation["size"]) != [height, width]:
                raise ValueError(f"its RLE is {segmentation['size']}, the image is {[height, width]} (height, width)")
            return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
        if not all(map(_is_polygon, segmentation)):
            raise ValueError("a polygon has no area or leaves any picture")
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))).view(bool)
    except Exception as error:  # pycocotools raises bare Exception for input that it does not know
        raise ValueError(f"an annotation of {path} cannot be read as a mask: {error}") from error
