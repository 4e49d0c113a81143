"""Checks of one image and its labels, run in worker processes by the inspector."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from partseg.data import ade20k_part, coco, io, partimagenet, pascal_part
from partseg.data.inspect_layout import Source
from partseg.structures import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.vocabulary import Vocabulary


@dataclass(frozen=True)
class ImageJob:
    """One source and the builder whose vocabulary numbers its labels."""

    source: Source
    builder: str


@dataclass(frozen=True)
class Maps:
    """Label maps of one image in vocabulary ids, int32 [h, w]; `owned` is None where objects cannot be checked.

    `object_part`: 0..K-1 or IGNORE_LABEL. `object`: position in `label_objects` or BACKGROUND_LABEL.
    `owned`: bool, an object of the part's own class covers the pixel; only read where a part is labelled.
    """

    object_part: np.ndarray
    object: np.ndarray
    owned: np.ndarray | None


@dataclass(frozen=True)
class ImageReport:
    """What one image holds. `problems` are (kind, message); pixel counts are by label id."""

    split: str
    name: str
    problems: tuple[tuple[str, str], ...] = ()
    parts: dict[int, int] = field(default_factory=dict)
    objects: dict[int, int] = field(default_factory=dict)
    outside: int = 0
    """Part pixels where no object is labelled."""
    foreign: int = 0
    """Part pixels where only objects of other classes are labelled."""


UNREADABLE = "unreadable file"
WRONG_SIZE = "label of another size"
WRONG_ID = "label id out of range"


def check(job: ImageJob) -> ImageReport:
    """Read everything of one image; what is wrong with it ends in the report, not in an exception."""
    source, names = job.source, vocabulary_of(job.builder)
    problems: list[tuple[str, str]] = []
    size = None
    try:
        photo = io.read_image(source.image)
        size = (photo.height, photo.width)
    except (ValueError, FileNotFoundError) as error:
        problems.append((UNREADABLE, str(error)))
    if size is not None and source.size is not None and size != tuple(source.size):
        problems.append((WRONG_SIZE, f"{source.image} is {size}, its annotation file says {tuple(source.size)}"))
    try:
        maps = read_maps(source, names, size)
    except WrongLabelError as error:
        problems.append((error.kind, str(error)))
        return ImageReport(source.split, source.name, tuple(problems))
    labelled = maps.object_part != IGNORE_LABEL
    outside = foreign = 0
    if maps.owned is not None:
        lost = labelled & ~maps.owned
        outside = int((lost & (maps.object == BACKGROUND_LABEL)).sum())
        foreign = int(lost.sum()) - outside
    return ImageReport(
        source.split,
        source.name,
        tuple(problems),
        parts=_pixels(maps.object_part, IGNORE_LABEL),
        objects=_pixels(maps.object, BACKGROUND_LABEL),
        outside=outside,
        foreign=foreign,
    )


class WrongLabelError(ValueError):
    """A label that cannot be used; `kind` is the finding it belongs to."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_maps(source: Source, names: Vocabulary, size: tuple[int, int] | None) -> Maps:
    """Label maps of a source; `size` (rows, columns) of its photo, None when that is unreadable.

    Raises WrongLabelError for files that are damaged, have other bits, another size or ids that the vocabulary lacks.
    """
    if source.object_part is None:
        return _from_polygons(source, size)
    part = _label(source.object_part, source.bits, names.num_object_parts, size)
    owner_of_part = np.append([names.label_objects.index(o) for o, _ in names.pairs], BACKGROUND_LABEL)
    owner = owner_of_part[np.where(part == IGNORE_LABEL, names.num_object_parts, part)]
    if source.object is not None:
        object_map = _label(source.object, source.bits, len(names.label_objects), part.shape)
        object_map = np.where(object_map == IGNORE_LABEL, BACKGROUND_LABEL, object_map)
        return Maps(part, object_map, object_map == owner)
    object_map = np.full(part.shape, BACKGROUND_LABEL, np.int32)
    owned = np.zeros(part.shape, bool)
    for instance in source.instances or ():
        mask = _mask(instance.segmentation, part.shape, source)
        object_map[mask] = instance.object_id
        owned |= mask & (owner == instance.object_id)
    return Maps(part, object_map, owned if source.instances else None)


def _from_polygons(source: Source, size: tuple[int, int] | None) -> Maps:
    shape = size or source.size
    if shape is None:
        raise WrongLabelError(UNREADABLE, f"{source.image} cannot be read and no annotation states its size")
    part = np.full(shape, IGNORE_LABEL, np.int32)
    for label, segmentation in source.polygons or ():
        part[_mask(segmentation, shape, source)] = label
    object_map = np.where(part == IGNORE_LABEL, BACKGROUND_LABEL, source.object_label or 0)
    return Maps(part, object_map, None)


def _label(path: str, bits: int, num_ids: int, size: tuple[int, ...] | None) -> np.ndarray:
    """int32 ids with IGNORE_LABEL for none."""
    try:
        stored = io.read_label(path, bits=bits).astype(np.int32)
    except (ValueError, FileNotFoundError) as error:
        raise WrongLabelError(UNREADABLE, str(error)) from error
    if size is not None and stored.shape != tuple(size):
        raise WrongLabelError(
            WRONG_SIZE, f"{path} is {stored.shape} (rows, columns), its photo or other label {tuple(size)}"
        )
    none = (1 << bits) - 1
    strange = np.unique(stored[(stored >= num_ids) & (stored != none)]).tolist()
    if strange:
        raise WrongLabelError(WRONG_ID, f"{path} holds {strange[:8]}; allowed are 0..{num_ids - 1} and {none}")
    stored[stored == none] = IGNORE_LABEL
    return stored


def _mask(segmentation: object, shape: tuple[int, ...], source: Source) -> np.ndarray:
    try:
        return coco.decode_mask(segmentation, height=shape[0], width=shape[1], path=source.image)
    except ValueError as error:
        raise WrongLabelError(WRONG_SIZE if "RLE is" in str(error) else UNREADABLE, str(error)) from error


def _pixels(labels: np.ndarray, none: int) -> dict[int, int]:
    counts = np.bincount(labels.ravel())
    return {int(k): int(counts[k]) for k in np.flatnonzero(counts) if k != none}


@lru_cache(maxsize=4)
def vocabulary_of(builder: str) -> Vocabulary:
    """The vocabulary that numbers the label files of a layout."""
    modules = {"pascal_part_116": pascal_part, "ade20k_part_234": ade20k_part, "partimagenet_40": partimagenet}
    return modules[builder].vocabulary()  # type: ignore[attr-defined]
