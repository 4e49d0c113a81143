"""A record's label files and annotations as maps and instances, in ids of the vocabulary in use.

Everything is read through one `Geometry`, so that the same code serves training and evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from partseg.data import coco, io
from partseg.geometry import Geometry
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.prediction import boxes_of
from partseg.structures import INSTANCE_LEVELS, Annotation, Checked, InstanceLevel, Instances, Record
from partseg.vocabulary.names import Vocabulary

InstanceSource = Literal["annotated", "classes"]
"""Where instances come from: the record's annotations, or every class's pixels in the label maps as one instance."""


@dataclass
class Maps:
    """Label maps after geometry, in ids of the label vocabulary."""

    object_part: np.ndarray
    object: np.ndarray
    num_owner: np.ndarray | None = None
    num_foreign: np.ndarray | None = None


@dataclass(frozen=True)
class LabelledPhoto:
    """A record under way: its photo, where its pixels go, and its labels in ids of the label vocabulary."""

    record: Record
    image: Image.Image
    geometry: Geometry
    maps: Maps
    reader: LabelReader


class LabelReader:
    """Reads the labels of records numbered by one vocabulary into ids of another.

    `hidden` is what objects become that the vocabulary in use lacks: IGNORE_LABEL, or BACKGROUND_LABEL in object maps.
    """

    def __init__(self, label_vocabulary: Vocabulary, vocabulary: Vocabulary, *, hidden: int = IGNORE_LABEL) -> None:
        self.theirs = label_vocabulary
        self.ours = vocabulary
        # int32 tables over all 16-bit labels: file ids -> their ids are made per file (8 or 16 bits), their ids -> ours
        self.part = label_vocabulary.lut_to(vocabulary)
        self.object = label_vocabulary.object_lut_to(vocabulary).copy()
        unknown = self.object[: label_vocabulary.num_objects] == IGNORE_LABEL
        self.object[: label_vocabulary.num_objects][unknown] = hidden
        positions = {name: i for i, name in enumerate(vocabulary.label_objects)}
        self.label_object = np.array([positions.get(o, IGNORE_LABEL) for o in label_vocabulary.label_objects], np.int32)
        self._parts = np.arange(IGNORE_LABEL + 1, dtype=np.int32)

    def maps(self, record: Record, image: Image.Image, geometry: Geometry) -> Maps:
        """Object-part and object map of a record, in ids of the label vocabulary.

        Object parts without an object map imply their owners. Nothing is known of an unlabelled record, outside the
        photo, and of what is no object inside a box without mask.
        """
        maps = self._maps(record, image, geometry)
        for annotation in record.annotations or ():
            if annotation.segmentation is None and annotation.box is not None:
                _forget_background(maps.object, geometry.boxes(np.array([annotation.box]))[0])
        if geometry.canvas is not None:
            outside = ~geometry.inside()
            maps.object_part[outside] = IGNORE_LABEL
            maps.object[outside] = IGNORE_LABEL
        return maps

    def _maps(self, record: Record, image: Image.Image, geometry: Geometry) -> Maps:
        object_part = np.full(geometry.size, IGNORE_LABEL, np.int32)
        if record.object_part_file_name is not None:
            object_part = self._png(record.object_part_file_name, image, record, geometry, "object-part")
        elif record.annotations:
            for annotation in record.of_level("object_part"):  # later ones on top
                if annotation.segmentation is not None and annotation.label >= 0:
                    object_part[read_mask(annotation.segmentation, image, record, geometry)] = annotation.label
        elif record.object_file_name is None:
            return Maps(object_part, object_part.copy())
        if record.object_file_name is not None:
            return Maps(object_part, self._png(record.object_file_name, image, record, geometry, "object"))
        annotated = record.of_level("object")
        if annotated or (record.annotations is not None and record.object_part_file_name is not None):
            return self._objects_of_instances(annotated, image, record, geometry, object_part)
        objects = self.theirs.object_lut.take(object_part)
        objects[objects == IGNORE_LABEL] = BACKGROUND_LABEL
        return Maps(object_part, objects)

    def _png(self, path: str, image: Image.Image, record: Record, geometry: Geometry, what: str) -> np.ndarray:
        parts = what == "object-part"
        ids = io.read_parts(record) if parts else io.read_label(path, bits=record.label_bits)
        if ids.shape != (image.height, image.width):
            raise ValueError(
                f"label {path} is {ids.shape[0]} x {ids.shape[1]} (height x width), its image {record.file_name} is "
                f"{image.height} x {image.width}; they do not belong together or one was resized"
            )
        vocabulary = self.theirs
        table = io.file_table(self._parts, vocabulary.num_object_parts, bits=record.label_bits)
        if what == "object":
            table = io.file_table(vocabulary.label_object_lut, len(vocabulary.label_objects), bits=record.label_bits)
        return io.translate(geometry.labels(ids, fill=(1 << record.label_bits) - 1), table, path=path, what=what)

    def _objects_of_instances(
        self,
        annotations: Sequence[Annotation],
        image: Image.Image,
        record: Record,
        geometry: Geometry,
        object_part: np.ndarray,
    ) -> Maps:
        """Object map of instances, later on top, but pixels with a part label go to its owner if that covers them.

        When some instances are not counted, they and part labels of objects without counted instance become
        IGNORE_LABEL.
        """
        # masks are column-major too, mixing orders is slow
        owner = np.asfortranarray(self.theirs.object_lut.take(object_part))
        labelled = owner != IGNORE_LABEL
        objects = np.full(owner.shape, BACKGROUND_LABEL, np.int32, order="F")
        owned = np.zeros(owner.shape, bool, order="F")
        num_owner, num_foreign = np.zeros_like(owned, np.uint8), np.zeros_like(owned, np.uint8)
        counted_ids = []
        for annotation in annotations:
            if annotation.segmentation is None:
                continue
            object_id = int(self.theirs.label_object_lut[annotation.label])
            mask = read_mask(annotation.segmentation, image, record, geometry)
            own = mask & (owner == object_id)
            objects[mask] = object_id if annotation.counted else IGNORE_LABEL
            if annotation.counted:
                counted_ids.append(object_id)
                owned |= own
                num_owner += own
                num_foreign += mask & labelled & ~own
        np.copyto(objects, owner, where=owned)
        if not all(annotation.counted for annotation in annotations):
            # inside a counted instance another object's part label counts, as a foreign one: its record has it
            left_out = labelled & ~np.isin(owner, np.unique(counted_ids)) & (num_foreign == 0)
            object_part = np.where(left_out, np.int32(IGNORE_LABEL), object_part)
            objects[left_out & (objects == BACKGROUND_LABEL)] = IGNORE_LABEL
            num_owner[left_out] = 0
            num_foreign[left_out] = 0
        return Maps(*map(np.ascontiguousarray, (object_part, objects, num_owner, num_foreign)))

    def instances(
        self, record: Record, image: Image.Image, geometry: Geometry, maps: Maps, source: InstanceSource
    ) -> Instances:
        """Instances of both levels in ids of the vocabulary in use; what lies outside is left out.

        A picture of which a file of instances outlines nothing has none; ValueError where there is no such file.
        """
        if source == "classes":
            return self._renamed(instances_of_maps(maps.object_part, maps.object, self.theirs), flip=geometry.flip)
        if record.annotations is None:
            raise ValueError(
                f"record {record.image_id!r} ({record.file_name}) has no annotated instances; "
                "instances=classes takes each class's pixels as one instance"
            )
        return self._of_annotations(record, image, geometry)

    def _of_annotations(self, record: Record, image: Image.Image, geometry: Geometry) -> Instances:
        found: list[Annotation] = []
        masks, boxes, place = [], [], {}
        for position, annotation in enumerate(record.annotations or ()):
            label = self.label(annotation.level, annotation.label, flip=geometry.flip)
            if label == IGNORE_LABEL:
                continue
            mask = np.zeros(geometry.size, bool)
            if annotation.segmentation is not None:
                mask = np.ascontiguousarray(read_mask(annotation.segmentation, image, record, geometry))
            box = boxes_of(torch.from_numpy(mask[None]))[0]
            if annotation.segmentation is None and annotation.box is not None:
                box = geometry.boxes(np.array([annotation.box]))[0]
            if box[2] <= box[0] or box[3] <= box[1]:
                continue
            place[position] = len(found)
            found.append(replace(annotation, label=label))
            masks.append(mask)
            boxes.append(box)
        parents = [place.get(-1 if a.parent is None else a.parent, -1) for a in found]
        return _instances(found, masks, boxes, parents, geometry.size)

    def _renamed(self, instances: Instances, *, flip: bool) -> Instances:
        """Instances of the label vocabulary in ids of the vocabulary in use."""
        levels = [INSTANCE_LEVELS[level] for level in instances.level.tolist()]
        labels = [self.label(level, label, flip=flip) for level, label in zip(levels, instances.label.tolist())]
        renamed = replace(instances, label=torch.tensor(labels, dtype=torch.long))
        return renamed.select(renamed.label != IGNORE_LABEL)

    def label(self, level: InstanceLevel, label: int, *, flip: bool) -> int:
        """Id in the vocabulary in use, IGNORE_LABEL where it lacks it; in a flipped picture that of the other side."""
        if level == "object":
            return int(self.label_object[label])
        if label < 0:
            return label
        label = int(self.part[label])
        return int(self.ours.mirror_lut[label]) if flip else label

    def checked(self, record: Record) -> Checked | None:
        """The record's, in ids of the vocabulary in use."""
        if record.checked is None:
            return None

        def ours(found: frozenset[tuple[InstanceLevel, int]]) -> frozenset[tuple[InstanceLevel, int]]:
            return frozenset((level, self.label(level, label, flip=False)) for level, label in found)

        return Checked(ours(record.checked.absent), ours(record.checked.partly))


def instances_of_maps(object_part: np.ndarray, objects: np.ndarray, vocabulary: Vocabulary) -> Instances:
    """Every class's pixels in two label maps as one instance; a part's parent is its object's."""
    found: list[Annotation] = []
    masks, place = [], {}
    for object_id in np.unique(objects[objects < vocabulary.num_objects]).tolist():
        place[object_id] = len(found)
        found.append(Annotation("object", vocabulary.label_objects.index(vocabulary.objects[object_id])))
        masks.append(objects == object_id)
    parents = [-1] * len(found)
    for part in np.unique(object_part[object_part < len(vocabulary)]).tolist():
        parents.append(place.get(int(vocabulary.object_of[part]), -1))
        found.append(Annotation("object_part", part))
        masks.append(object_part == part)
    boxes = list(boxes_of(torch.from_numpy(np.stack(masks)))) if masks else []
    return _instances(found, masks, boxes, parents, (objects.shape[0], objects.shape[1]))


def object_map(path: str, vocabulary: Vocabulary, size: tuple[int, int]) -> np.ndarray:
    """int32 object ids of a segmenter's PNG (8 or 16 bits, the data set's object ids, all ones: none)."""
    if not Path(path).exists():
        raise FileNotFoundError(f"no object map {path}; eval.objects= needs a PNG for every image")
    ids = io.read_label(path, bits=None)
    if ids.shape != size:
        raise ValueError(f"{path} is {ids.shape} (height, width), the labels of this image are {size}")
    table = io.file_table(vocabulary.label_object_lut, len(vocabulary.label_objects), bits=8 * ids.itemsize)
    return io.translate(ids, table, path=path, what="object")


def _forget_background(objects: np.ndarray, box: np.ndarray) -> None:
    left, top = np.floor(box[:2]).astype(int).clip(0)
    right, bottom = np.ceil(box[2:]).astype(int).clip(0)
    inside = objects[top:bottom, left:right]
    inside[inside == BACKGROUND_LABEL] = IGNORE_LABEL


def _instances(
    found: Sequence[Annotation],
    masks: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    parents: Sequence[int],
    size: tuple[int, int],
) -> Instances:
    stacked = np.stack(masks) if masks else np.zeros((0, *size), bool)
    return Instances(
        masks=torch.from_numpy(stacked),
        boxes=torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4)),
        level=torch.tensor([INSTANCE_LEVELS.index(a.level) for a in found], dtype=torch.long),
        label=torch.tensor([a.label for a in found], dtype=torch.long),
        parent=torch.tensor(parents, dtype=torch.long),
        has_mask=torch.tensor([bool(mask.any()) for mask in masks], dtype=torch.bool),
        counted=torch.tensor([a.counted for a in found], dtype=torch.bool),
    )


def read_mask(segmentation: object, image: Image.Image, record: Record, geometry: Geometry) -> np.ndarray:
    """bool mask of a COCO segmentation after geometry."""
    return geometry.labels(
        coco.decode_mask(segmentation, height=image.height, width=image.width, path=record.file_name)
    )
