"""Original Pascal-Part (.mat) to the instances of VLPart's 93 object-parts; used by datasets/prepare_pascal_part_93.py.

Every original part is one instance (left and right stay apart), called by the first class of its object whose name it
contains; parts of no class are left out. Instances of objects are kept too, as parents of their parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from converters.conversion import Item, Output
from converters.labels import check_size, photo_size, raw_names
from converters.pascal import PascalObject, read_annotation
from partseg.utils.files import json_bytes
from partseg.vocabulary.shipped import shipped

TOOL_VERSION = 1
SHORT = {"license plate": "liplate", "paw": "pa"}
"""What the original names of these parts contain."""

SPACED = {"pottedplant": "potted plant", "diningtable": "dining table", "tvmonitor": "tv monitor"}
NO_CLASS = ("chainwheel",)
"""Contain a class's name and are none of it; VLPart's own conversion takes them."""


@dataclass(frozen=True)
class Job93:
    """One image: its annotation, its photo, and where the result goes."""

    name: str
    split: str
    annotation: str
    image: str
    output: str
    link: bool
    official: bool


def class_of(owner: str, raw: str, *, official: bool) -> str | None:
    """The part class of an original part name ("lfpa" of a dog: paw); None for parts of no class."""
    if not official and raw.startswith(NO_CLASS):
        return None
    parts = [part for name, part in shipped("pascal_part_93").pairs if name == owner]
    return next((part for part in parts if SHORT.get(part, part) in raw), None)


def instances(objects: Sequence[PascalObject], path: Path, *, official: bool) -> Iterator[dict[str, Any]]:
    """COCO entries of the objects and their parts; `parent` is the place of a part's object among them."""
    names = shipped("pascal_part_93")
    place = 0
    for thing in objects:
        name = raw_names("pascal_part_raw_names")["object_aliases"].get(thing.name, thing.name)
        owner = SPACED.get(name, name)
        if owner not in names.label_objects:
            raise ValueError(f"{path}: object {thing.name!r} is none of the 20 VOC classes")
        if not thing.mask.any():
            continue
        parent = place
        yield _entry(thing.mask, len(names) + 1 + names.label_objects.index(owner), None)
        place += 1
        for raw, mask in thing.parts:
            part = class_of(owner, raw, official=official)
            if part is not None and mask.any():
                yield _entry(mask, 1 + names.pairs.index((owner, part)), parent)
                place += 1


def _entry(mask: np.ndarray, category: int, parent: int | None) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "category_id": category,
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
        "bbox": [float(value) for value in coco_mask.toBbox(rle)],
        "area": int(mask.sum()),
        "parent": parent,
    }


def convert(job: Job93) -> Item:
    """One image's photo and instances; left out when it shows no part of the 93 classes."""
    path, image = Path(job.annotation), Path(job.image)
    objects = read_annotation(path)
    shape = photo_size(image)
    for thing in objects:
        for mask in (thing.mask, *(mask for _, mask in thing.parts)):
            if mask.shape != shape:
                check_size(path, mask.shape, image)
    found = list(instances(objects, path, official=job.official))
    count = len(shipped("pascal_part_93"))
    parts = sorted({entry["category_id"] - 1 for entry in found if entry["category_id"] <= count})
    if not parts:
        return Item(job.name, None, reason="no part of the 93 classes")
    out = Output(Path(job.output))
    out.place(f"images/{job.split}/{image.name}", image, link=job.link)
    things = sorted({entry["category_id"] - 1 - count for entry in found if entry["category_id"] > count})
    content = {"file_name": image.name, "height": shape[0], "width": shape[1], "instances": found}
    classes = {"object": things, "object_part": parts}
    return Item(job.name, job.split, files=out.files, classes=classes, annotations=content)


def coco_json(items: Sequence[Item], split: str) -> bytes:
    """The split's COCO file; images are numbered as in VLPart's own files (2008_000002 is 2008000002)."""
    names = shipped("pascal_part_93")
    categories = [f"{owner}:{part}" for owner, part in names.pairs] + list(names.label_objects)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for item in items:
        if item.split != split or item.annotations is None:
            continue
        content: Mapping[str, Any] = item.annotations
        image = int(item.name.replace("_", ""))
        images.append({"id": image, **{key: content[key] for key in ("file_name", "height", "width")}})
        first = len(annotations) + 1
        for entry in content["instances"]:
            parent = {} if entry["parent"] is None else {"parent_id": first + entry["parent"]}
            kept = {key: value for key, value in entry.items() if key != "parent"}
            annotations.append({"id": len(annotations) + 1, "image_id": image, **kept, "iscrowd": 0, **parent})
    listed = [{"id": k, "name": name} for k, name in enumerate(categories, 1)]
    return json_bytes({"images": images, "annotations": annotations, "categories": listed})
