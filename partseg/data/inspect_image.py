"""Checks of one image and its labels, run in worker processes by the inspector."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from partseg.data import coco, io
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Record
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.words import named


@dataclass(frozen=True)
class ImageJob:
    """One record and the vocabulary (shipped, a YAML file, or an own one) that numbers its labels."""

    split: str
    record: Record
    vocabulary: str | Vocabulary


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
    record = job.record
    names = named(job.vocabulary) if isinstance(job.vocabulary, str) else job.vocabulary
    problems: list[tuple[str, str]] = []
    size = None
    try:
        photo = io.read_image(record.file_name)
        size = (photo.height, photo.width)
    except (ValueError, FileNotFoundError) as error:
        problems.append((UNREADABLE, str(error)))
    stated = _stated_size(record)
    if size is not None and stated is not None and size != stated:
        problems.append((WRONG_SIZE, f"{record.file_name} is {size}, its annotation file says {stated}"))
    try:
        maps = read_maps(record, names, size)
    except WrongLabelError as error:
        problems.append((error.kind, str(error)))
        return ImageReport(job.split, record.image_id, tuple(problems))
    labelled = maps.object_part != IGNORE_LABEL
    outside = foreign = 0
    if maps.owned is not None:
        lost = labelled & ~maps.owned
        outside = int((lost & (maps.object == BACKGROUND_LABEL)).sum())
        foreign = int(lost.sum()) - outside
    return ImageReport(
        job.split,
        record.image_id,
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


def read_maps(record: Record, names: Vocabulary, size: tuple[int, int] | None) -> Maps:
    """Label maps of a record; `size` (rows, columns) of its photo, None when that is unreadable.

    Raises WrongLabelError for files that are damaged, have other bits, another size or ids that the vocabulary lacks.
    """
    if record.object_part_file_name is not None:
        part = _label(record, record.object_part_file_name, names.num_object_parts, size)
    else:
        shape = size or _stated_size(record)
        if shape is None:
            raise WrongLabelError(UNREADABLE, f"{record.file_name} cannot be read and no annotation states its size")
        part = np.full(shape, IGNORE_LABEL, np.int32)
        for annotation in record.of_level("object_part"):
            if annotation.segmentation is not None:  # a box says where a part is, not which pixels
                part[_mask(annotation.segmentation, part.shape, record)] = annotation.label
    owner_of_part = np.append([names.label_objects.index(o) for o, _ in names.pairs], BACKGROUND_LABEL)
    owner = owner_of_part[np.where(part == IGNORE_LABEL, names.num_object_parts, part)]
    if record.object_file_name is not None:
        object_map = _label(record, record.object_file_name, len(names.label_objects), part.shape)
        object_map = np.where(object_map == IGNORE_LABEL, BACKGROUND_LABEL, object_map)
        return Maps(part, object_map, object_map == owner)
    annotated = record.of_level("object")
    if not annotated:  # where nobody outlined the objects, a part's owner is all that is known of them
        known = record.object_part_file_name is None
        return Maps(part, owner if known else np.full(part.shape, BACKGROUND_LABEL, np.int32), None)
    object_map = np.full(part.shape, BACKGROUND_LABEL, np.int32)
    owned = np.zeros(part.shape, bool)
    for annotation in (each for each in annotated if each.segmentation is not None):
        mask = _mask(annotation.segmentation, part.shape, record)
        object_map[mask] = annotation.label
        owned |= mask & (owner == annotation.label)
    return Maps(part, object_map, owned)


def _stated_size(record: Record) -> tuple[int, int] | None:
    return None if record.height is None or record.width is None else (record.height, record.width)


def _label(record: Record, path: str, num_ids: int, size: tuple[int, ...] | None) -> np.ndarray:
    """int32 ids with IGNORE_LABEL for none."""
    bits = record.label_bits
    try:
        parts = path == record.object_part_file_name
        stored = (io.read_parts(record) if parts else io.read_label(path, bits=bits)).astype(np.int32)
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


def _mask(segmentation: object, shape: tuple[int, ...], record: Record) -> np.ndarray:
    try:
        return coco.decode_mask(segmentation, height=shape[0], width=shape[1], path=record.file_name)
    except ValueError as error:
        raise WrongLabelError(WRONG_SIZE if "RLE is" in str(error) else UNREADABLE, str(error)) from error


def _pixels(labels: np.ndarray, none: int) -> dict[int, int]:
    counts = np.bincount(labels.ravel())
    return {int(k): int(counts[k]) for k in np.flatnonzero(counts) if k != none}
