"""Record to Sample: read the files, translate ids to the vocabulary in use, apply geometry.

`TrainMapper` hides unseen classes and works at network size; `EvalMapper` keeps labels at their own size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from partseg.data import coco, io, transforms
from partseg.data.transforms import Geometry
from partseg.structures import BACKGROUND_LABEL, IGNORE_LABEL, Record, Sample
from partseg.vocabulary import Vocabulary


@dataclass(frozen=True)
class _Tables:
    """int32 tables: file ids -> ids of the label vocabulary, and those -> ids of the vocabulary in use."""

    part_file: np.ndarray
    object_file: np.ndarray
    owner: np.ndarray
    part: np.ndarray
    object: np.ndarray


@dataclass
class _Labels:
    """Label maps after geometry, in ids of the label vocabulary."""

    object_part: np.ndarray
    object: np.ndarray
    num_owner: np.ndarray | None = None
    num_foreign: np.ndarray | None = None


class TrainMapper:
    """Training samples at `size` x `size` without keeping the aspect; every random choice comes from the given rng.

    Unseen objects become IGNORE_LABEL, or BACKGROUND_LABEL in object maps with `unseen_as_background` (as official).
    `short_edge` first resizes to this short edge, as the official recipe does; `crop_scale` is the range of the area
    that a random crop keeps; `jitter` is the strength of colour changes. All three are off by default.
    `label_rule` is that of `Geometry` (official: "corner"). `drop_without_parts` maps a picture on which no part label
    of the vocabulary is left to None, and the data set then draws another (official, detectron2's MapDataset).
    """

    def __init__(
        self,
        size: int = 352,
        *,
        flip_probability: float = 0.5,
        unseen_as_background: bool = False,
        channel_order: str = "rgb",
        short_edge: int | None = None,
        long_edge: int | None = None,
        crop_scale: tuple[float, float] | None = None,
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        jitter: float = 0.0,
        label_rule: str = "centre",
        drop_without_parts: bool = False,
    ) -> None:
        _check_common(size, channel_order, short_edge)
        if label_rule not in transforms.LABEL_RULES:
            raise ValueError(f"label_rule={label_rule!r} is not one of {transforms.LABEL_RULES}")
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"flip_probability={flip_probability} is not in 0..1")
        if crop_scale is not None and not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale={crop_scale} must be two numbers with 0 < low <= high <= 1")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter={jitter} is not in 0..1")
        self.size = size
        self.flip_probability = flip_probability
        self.unseen_as_background = unseen_as_background
        self.channel_order = channel_order
        self.short_edge = short_edge
        self.long_edge = long_edge
        self.crop_scale = None if crop_scale is None else (float(crop_scale[0]), float(crop_scale[1]))
        self.crop_ratio = (float(crop_ratio[0]), float(crop_ratio[1]))
        self.jitter = jitter
        self.label_rule = label_rule
        self.drop_without_parts = drop_without_parts
        self._tables: dict[tuple, _Tables] = {}

    def __call__(
        self, record: Record, *, label_vocabulary: Vocabulary, vocabulary: Vocabulary, rng: np.random.Generator
    ) -> Sample | None:
        """Sample with both label maps at network size, in ids of `vocabulary`; None for a picture that is dropped."""
        hidden = BACKGROUND_LABEL if self.unseen_as_background else IGNORE_LABEL
        tables = _tables(self._tables, label_vocabulary, vocabulary, bits=record.label_bits, hidden=hidden)
        image = _read_image(record)
        geometry = self._geometry(image.height, image.width, rng)
        labels = _read_labels(record, image, geometry, tables)
        object_part = tables.part.take(labels.object_part)
        if self.drop_without_parts and (object_part == IGNORE_LABEL).all():
            return None
        objects = tables.object.take(labels.object)
        if geometry.flip:
            object_part = vocabulary.mirror_lut.take(object_part)
        shown = geometry.image(image)
        if self.jitter:
            shown = transforms.jitter_colour(shown, strength=self.jitter, rng=rng)
        return Sample(
            image=transforms.to_tensor(shown, channel_order=self.channel_order),
            object_part=torch.from_numpy(object_part),
            object=torch.from_numpy(objects),
            name=record.image_id,
            file_name=record.file_name,
        )

    def _geometry(self, height: int, width: int, rng: np.random.Generator) -> Geometry:
        flip = bool(rng.random() < self.flip_probability)
        box = transforms.random_box(height, width, scale=self.crop_scale, ratio=self.crop_ratio, rng=rng)
        via = transforms.via_short_edge(
            box[3] - box[1], box[2] - box[0], short_edge=self.short_edge, long_edge=self.long_edge
        )
        return Geometry(box, (*via, (self.size, self.size)), flip, self.label_rule)


class EvalMapper:
    """Evaluation samples: the image at `size` x `size`, labels untouched at their own size; nothing is random."""

    def __init__(
        self,
        size: int = 352,
        *,
        channel_order: str = "rgb",
        short_edge: int | None = None,
        long_edge: int | None = None,
    ) -> None:
        _check_common(size, channel_order, short_edge)
        self.size = size
        self.channel_order = channel_order
        self.short_edge = short_edge
        self.long_edge = long_edge
        self._tables: dict[tuple, _Tables] = {}

    def __call__(
        self,
        record: Record,
        *,
        label_vocabulary: Vocabulary,
        vocabulary: Vocabulary,
        rng: np.random.Generator | None = None,
    ) -> Sample:
        """Sample with label maps at their own size; `num_owner` and `num_foreign` where the record has instances."""
        tables = _tables(self._tables, label_vocabulary, vocabulary, bits=record.label_bits, hidden=IGNORE_LABEL)
        image = _read_image(record)
        whole = (0, 0, image.width, image.height)
        labels = _read_labels(record, image, Geometry(whole), tables)
        via = transforms.via_short_edge(image.height, image.width, short_edge=self.short_edge, long_edge=self.long_edge)
        shown = Geometry(whole, (*via, (self.size, self.size))).image(image)
        return Sample(
            image=transforms.to_tensor(shown, channel_order=self.channel_order),
            object_part=torch.from_numpy(tables.part.take(labels.object_part)),
            object=torch.from_numpy(tables.object.take(labels.object)),
            name=record.image_id,
            file_name=record.file_name,
            num_owner=_optional_tensor(labels.num_owner),
            num_foreign=_optional_tensor(labels.num_foreign),
        )


def _check_common(size: int, channel_order: str, short_edge: int | None) -> None:
    if size < 1 or (short_edge is not None and short_edge < 1):
        raise ValueError(f"size={size} and short_edge={short_edge} must be positive")
    if channel_order not in transforms.CHANNEL_ORDERS:
        raise ValueError(f"channel_order={channel_order!r} is not one of {transforms.CHANNEL_ORDERS}")


def _tables(
    cache: dict[tuple, _Tables], label_vocabulary: Vocabulary, vocabulary: Vocabulary, *, bits: int, hidden: int
) -> _Tables:
    """Tables for one pair of vocabularies; made once, because a mapper sees the same pair for every record."""
    key = (label_vocabulary.key, vocabulary.key, bits)
    if key not in cache:
        objects = label_vocabulary.object_lut_to(vocabulary).copy()
        objects[: label_vocabulary.num_objects][objects[: label_vocabulary.num_objects] == IGNORE_LABEL] = hidden
        parts = np.arange(IGNORE_LABEL + 1, dtype=np.int32)
        cache[key] = _Tables(
            part_file=io.file_table(parts, label_vocabulary.num_object_parts, bits=bits),
            object_file=io.file_table(
                label_vocabulary.label_object_lut, len(label_vocabulary.label_objects), bits=bits
            ),
            owner=label_vocabulary.object_lut,
            part=label_vocabulary.lut_to(vocabulary),
            object=objects,
        )
    return cache[key]


def _read_image(record: Record) -> Image.Image:
    """The photo; turned by its orientation tag only where that is what the annotation was made on."""
    image = io.read_image(record.file_name)
    annotated = image.size if record.width is None or record.height is None else (record.width, record.height)
    if annotated != image.size:
        image = io.upright(image)
    if annotated != image.size:
        raise ValueError(
            f"{record.file_name} is {image.height} x {image.width} (height x width), its annotation says "
            f"{record.height} x {record.width}; use the pictures that the annotation was made for"
        )
    return image


def _read_labels(record: Record, image: Image.Image, geometry: Geometry, tables: _Tables) -> _Labels:
    if record.polygons is not None:
        object_part = _paint(record, image, geometry)
    elif record.object_part_file_name is not None:
        object_part = _read_png(record.object_part_file_name, image, record, geometry, tables.part_file, "object-part")
    else:
        raise ValueError(f"record {record.image_id!r} ({record.file_name}) has no part labels")
    if record.instances is not None:
        return _paint_instances(record, image, geometry, object_part, tables.owner)
    if record.object_file_name is not None:
        objects = _read_png(record.object_file_name, image, record, geometry, tables.object_file, "object")
    else:
        objects = tables.owner.take(object_part)
        objects[objects == IGNORE_LABEL] = BACKGROUND_LABEL
    return _Labels(object_part, objects)


def _read_png(
    path: str, image: Image.Image, record: Record, geometry: Geometry, table: np.ndarray, what: str
) -> np.ndarray:
    ids = io.read_label(path, bits=record.label_bits)
    if ids.shape != (image.height, image.width):
        raise ValueError(
            f"label {path} is {ids.shape[0]} x {ids.shape[1]} (height x width), its image {record.file_name} is "
            f"{image.height} x {image.width}; they do not belong together or one was resized"
        )
    return io.translate(geometry.labels(ids), table, path=path, what=what)


def _mask(segmentation: object, image: Image.Image, record: Record, geometry: Geometry) -> np.ndarray:
    return geometry.labels(coco.decode_mask(segmentation, height=image.height, width=image.width, path=record.file_name))


def _paint(record: Record, image: Image.Image, geometry: Geometry) -> np.ndarray:
    """Object-part map of the record's polygons, later ones on top."""
    labels = geometry.labels(np.full((image.height, image.width), IGNORE_LABEL, np.int32))
    for object_part, segmentation in record.polygons or ():
        labels[_mask(segmentation, image, record, geometry)] = object_part
    return labels


def _paint_instances(
    record: Record, image: Image.Image, geometry: Geometry, object_part: np.ndarray, owner_lut: np.ndarray
) -> _Labels:
    """Object map of the instances, later on top, but pixels with a part label go to its owner if that covers them.

    When some instances are not counted, they and part labels of objects without counted instance become IGNORE_LABEL.
    """
    owner = np.asfortranarray(owner_lut.take(object_part))  # masks are column-major too, mixing orders is slow
    labelled = owner != IGNORE_LABEL
    objects = np.full(owner.shape, BACKGROUND_LABEL, np.int32, order="F")
    owned = np.zeros(owner.shape, bool, order="F")
    num_owner, num_foreign = np.zeros_like(owned, np.uint8), np.zeros_like(owned, np.uint8)
    instances = record.instances or ()
    for instance in instances:
        mask = _mask(instance.segmentation, image, record, geometry)
        own = mask & (owner == instance.object_id)
        objects[mask] = instance.object_id if instance.counted else IGNORE_LABEL
        if instance.counted:
            owned |= own
            num_owner += own
            num_foreign += mask & labelled & ~own
    np.copyto(objects, owner, where=owned)
    if not all(instance.counted for instance in instances):
        counted = np.unique([instance.object_id for instance in instances if instance.counted])
        # inside a counted instance another object's part label counts, as a foreign one: the instance's record has it
        left_out = labelled & ~np.isin(owner, counted) & (num_foreign == 0)
        object_part = np.where(left_out, np.int32(IGNORE_LABEL), object_part)
        objects[left_out & (objects == BACKGROUND_LABEL)] = IGNORE_LABEL
        num_owner[left_out] = 0
        num_foreign[left_out] = 0
    return _Labels(*map(np.ascontiguousarray, (object_part, objects, num_owner, num_foreign)))


def _optional_tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
