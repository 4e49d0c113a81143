"""Original Pascal-Part (.mat, instance masks) to the Pascal-Part-116 layout; used by datasets/prepare_pascal_part.py.

Rules read off the official label files: parts are painted in file order; the object label is the VOC segmentation class
and parts are cut to it (`clip`); objects and images without a part label are left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.io import loadmat

from converters.conversion import Item, Output
from converters.labels import check_size, ids_in, photo_size, png_bytes, raw_names
from partseg.data.io import read_label
from partseg.vocabulary.shipped import shipped

TOOL_VERSION = 1
NONE = 255
OBJECT_FOLDER, PART_FOLDER = "annotations_detectron2_obj", "annotations_detectron2_part"
Clip = Literal["no", "all", "available"]

_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class PascalJob:
    """One image: its annotation, its photo, its VOC mask if it has one, and where the result goes."""

    name: str
    split: str
    annotation: str
    image: str
    mask: str | None
    output: str
    link: bool


@dataclass(frozen=True)
class PascalObject:
    """One annotated instance: VOC class name, bool mask [h, w], and (original part name, bool mask) in file order."""

    name: str
    mask: np.ndarray
    parts: tuple[tuple[str, np.ndarray], ...]


@lru_cache(maxsize=1)
def part_ids() -> dict[tuple[str, str], int]:
    """(VOC class, original part name, its number replaced by `*`) -> object-part label."""
    ids = {pair: i for i, pair in enumerate(shipped("pascal_part_116").pairs)}
    return {
        (obj, raw): ids[obj, part]
        for obj, parts in raw_names("pascal_part_raw_names")["parts"].items()
        for part, raw_names in parts.items()
        for raw in raw_names
    }


@lru_cache(maxsize=1)
def object_ids() -> dict[str, int]:
    """Class name in .mat files -> object label."""
    ids = {name: i for i, name in enumerate(shipped("pascal_part_116").label_objects)}
    aliases = raw_names("pascal_part_raw_names")["object_aliases"]
    return {**ids, **{alias: ids[name] for alias, name in aliases.items()}}


def read_annotation(path: Path) -> list[PascalObject]:
    """Instances of one .mat file; ValueError when it is damaged or not Pascal-Part."""
    try:
        content = loadmat(path, variable_names=["anno"])
        objects = content["anno"][0, 0]["objects"]
        return [
            PascalObject(
                name=str(obj["class"][0]),
                mask=obj["mask"] > 0,
                parts=tuple(
                    (str(p["part_name"][0]), p["mask"] > 0) for p in (obj["parts"][0] if obj["parts"].size else ())
                ),
            )
            for obj in (objects[0] if objects.size else ())
        ]
    except FileNotFoundError:
        raise
    except Exception as error:  # scipy raises anything from zlib.error to TypeError on damaged files
        raise ValueError(f"cannot read {path} as a Pascal-Part annotation ({error!r}); fetch it again") from error


def part_id(obj: str, raw: str, path: Path) -> int:
    """Object-part label of an original part name; ValueError names the one that the map lacks."""
    key = (obj, _NUMBER.sub("_*", raw))
    if key not in part_ids():
        known = sorted(r for o, r in part_ids() if o == obj)
        raise ValueError(
            f"{path}: part {raw!r} of {obj!r} is in no Pascal-Part-116 class; {obj!r} has {known} "
            f"(edit datasets/converters/pascal_part_raw_names.yaml)"
        )
    return part_ids()[key]


def label_maps(
    objects: Sequence[PascalObject], shape: tuple[int, int], mask: np.ndarray | None, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(object, object-part) labels uint8 [h, w], 255 for none.

    With `mask` (VOC classes 1..20, 0 and 255 elsewhere) it alone says which object a pixel shows. Without, later
    instances lie on earlier ones. Objects of which no part is labelled get no object label either.
    """
    names = shipped("pascal_part_116")
    if mask is None:
        object_map, part_map = _painted(objects, shape, path)
    else:
        object_map = np.where((mask >= 1) & (mask <= len(names.label_objects)), mask - 1, NONE).astype(np.uint8)
        part_map = np.full(shape, NONE, np.uint8)
        for label in sorted({_object_id(obj.name, path) for obj in objects}):
            here = object_map == label
            of_class = [obj for obj in objects if _object_id(obj.name, path) == label]
            part_map[here] = _painted(of_class, shape, path)[1][here]
    with_parts = {names.label_objects.index(names.pairs[k][0]) for k in ids_in(part_map, NONE)}
    object_map[~np.isin(object_map, sorted(with_parts))] = NONE
    return object_map, part_map


def _painted(objects: Sequence[PascalObject], shape: tuple[int, int], path: Path) -> tuple[np.ndarray, np.ndarray]:
    names = shipped("pascal_part_116").label_objects
    object_map, part_map = np.full((2, *shape), NONE, np.uint8)
    for obj in objects:
        label = _object_id(obj.name, path)
        object_map[obj.mask], part_map[obj.mask] = label, NONE
        for raw, part_mask in obj.parts:
            object_map[part_mask], part_map[part_mask] = label, part_id(names[label], raw, path)
    return object_map, part_map


def _object_id(name: str, path: Path) -> int:
    if name not in object_ids():
        raise ValueError(f"{path}: object {name!r} is none of the 20 VOC classes {sorted(object_ids())}")
    return object_ids()[name]


def convert(job: PascalJob) -> Item:
    """One image into photo, object PNG and part PNG; left out when no part is labelled."""
    path, image = Path(job.annotation), Path(job.image)
    objects = read_annotation(path)
    shape = photo_size(image)
    for obj in objects:
        for mask in (obj.mask, *(m for _, m in obj.parts)):
            if mask.shape != shape:
                check_size(path, mask.shape, image)
    voc = None
    if job.mask is not None:
        voc = read_label(job.mask, bits=8)
        if voc.shape != shape:
            check_size(job.mask, voc.shape, image)
    object_map, part_map = label_maps(objects, shape, voc, path)
    parts = ids_in(part_map, NONE)
    if not parts:
        return Item(job.name, None, reason="no part label")
    out = Output(Path(job.output))
    out.place(f"images/{job.split}/{image.name}", image, link=job.link)
    out.write(f"{OBJECT_FOLDER}/{job.split}/{job.name}.png", png_bytes(object_map))
    out.write(f"{PART_FOLDER}/{job.split}/{job.name}.png", png_bytes(part_map))
    return Item(
        job.name, job.split, files=out.files, classes={"object": ids_in(object_map, NONE), "object_part": parts}
    )


def make_jobs(
    annotations: Mapping[str, Path],
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    *,
    val: Collection[str],
    clip: Clip,
    output: Path,
    link: bool,
) -> list[PascalJob]:
    """Jobs in order of name. FileNotFoundError when photos or (clip = "all") masks are missing, with examples."""
    _require(annotations, images, "photo", "point voc= to the VOCdevkit that holds VOC2010/JPEGImages")
    if clip == "all":
        remedy = "use voc_masks= with masks for all images (SBD's SegmentationClassAug), or clip_to_voc=available"
        _require(annotations, masks, "VOC segmentation mask", remedy)
    return [
        PascalJob(
            name=name,
            split="val" if name in val else "train",
            annotation=str(path),
            image=str(images[name]),
            mask=str(masks[name]) if clip != "no" and name in masks else None,
            output=str(output),
            link=link,
        )
        for name, path in sorted(annotations.items())
    ]


def _require(wanted: Mapping[str, Path], found: Mapping[str, Path], what: str, remedy: str) -> None:
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(wanted)} annotations have no {what}: {missing[:5]}; {remedy}")
