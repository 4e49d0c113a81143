"""ADE20K full (2021_17_01) to the ADE20K-Part-234 layout; used by datasets/prepare_ade20k_part.py.

An object instance is an annotation with a class number of one of the 44 objects that is not part of another such
annotation (a door of a car is a part, a door of a building is an object, because building is not one of the 44).
A part label belongs to the instance its `ispartof` chain ends in and is cut to that instance's extent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from converters.conversion import Item, Output
from converters.labels import check_size, ids_in, photo_size, png_bytes, raw_names
from partseg.data.io import read_label
from partseg.labels import IGNORE_LABEL
from partseg.utils.files import json_bytes
from partseg.vocabulary.shipped import shipped

TOOL_VERSION = 1
PART_FOLDER = "annotations_detectron2_part"
SPLITS = {"training": "train", "validation": "val"}
VISIBLE = 255
"""Value of visible pixels in instance masks; 128 marks what something else hides, 0 the rest."""


@dataclass(frozen=True)
class AdeJob:
    """One image by its annotation file; photo and masks lie beside it."""

    name: str
    split: str
    annotation: str
    output: str
    link: bool


@dataclass(frozen=True)
class RawIds:
    """Class numbers of ADE20K -> labels of ADE20K-Part-234."""

    objects: Mapping[int, int]
    parts: Mapping[tuple[int, int], int]
    """(object label, class number of the part) -> object-part label."""


@dataclass(frozen=True)
class Node:
    """One annotation: class number, the annotation it is part of (None: of nothing), depth, and its mask file."""

    raw_id: int
    parent: int | None
    level: int
    mask: str


@lru_cache(maxsize=1)
def raw_ids() -> RawIds:
    """The shipped map of class numbers."""
    names = shipped("ade20k_part_234")
    pairs = {pair: i for i, pair in enumerate(names.pairs)}
    objects: dict[int, int] = {}
    parts: dict[tuple[int, int], int] = {}
    for name, entry in raw_names("ade20k_raw_ids").items():
        label = names.label_objects.index(name)
        objects.update(dict.fromkeys(entry["ids"], label))
        parts.update({(label, raw): pairs[name, part] for part, numbers in entry["parts"].items() for raw in numbers})
    return RawIds(objects, parts)


def read_annotation(path: Path) -> dict[int, Node]:
    """Annotations of one image by their id. ValueError when the file is damaged or of another release."""
    data = path.read_bytes()
    nodes: dict[int, Node] = {}
    where = "annotation.object"
    try:
        try:
            content = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError:  # some files of the release are latin-1
            content = json.loads(data.decode("latin-1"))
        for number, entry in enumerate(content["annotation"]["object"]):
            where = f"annotation.object[{number}]"
            nodes[int(entry["id"])] = Node(
                raw_id=int(entry["name_ndx"]),
                parent=_first(entry["parts"]["ispartof"]),
                level=int(entry["parts"]["part_level"]),
                mask=str(entry["instance_mask"]),
            )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"cannot read {where} of {path} as an ADE20K 2021_17_01 annotation ({error!r}); "
            f"fetch it again, or check that it is not of another release"
        ) from error
    return nodes


def owner_of(node_id: int, nodes: Mapping[int, Node], objects: Mapping[int, int], path: Path) -> int | None:
    """Id of the outermost annotation on the way up from `node_id` (itself included) that is one of the 44 objects."""
    owner, seen, at = None, set(), node_id
    while True:
        if at in seen or at not in nodes:
            raise ValueError(f"{path}: the ispartof chain of annotation {node_id} is broken at {at}; fetch it again")
        seen.add(at)
        if nodes[at].raw_id in objects:
            owner = at
        parent = nodes[at].parent
        if parent is None:
            return owner
        at = parent


def convert(job: AdeJob) -> Item:
    """One image into photo, 16-bit part PNG and its instances; left out when it has no part label."""
    path = Path(job.annotation)
    image, ids, nodes = path.with_suffix(".jpg"), raw_ids(), read_annotation(path)
    owners = {node_id: owner_of(node_id, nodes, ids.objects, path) for node_id in nodes}
    labels = {
        node_id: ids.parts[key]
        for node_id, owner in owners.items()
        if owner is not None
        and owner != node_id
        and (key := (ids.objects[nodes[owner].raw_id], nodes[node_id].raw_id)) in ids.parts
    }
    if not labels:
        return Item(job.name, None, reason="no part of the 234 classes")
    if not image.is_file():
        raise FileNotFoundError(f"{path} has no photo {image.name} beside it; unpack ADE20K again")
    shape = photo_size(image)
    part_map = np.full(shape, IGNORE_LABEL, np.uint16)
    masks = {i: _mask(path, nodes[i], shape, image) for i, owner in owners.items() if owner == i}
    visible = {i: mask == VISIBLE for i, mask in masks.items()}
    # a part of a part is painted after the part it lies on
    for node_id in sorted(labels, key=lambda i: (nodes[i].level, i)):
        owner = owners[node_id]
        assert owner is not None
        # where a part is seen its owner is seen too, although some masks call these pixels hidden
        seen = (_mask(path, nodes[node_id], shape, image) == VISIBLE) & (masks[owner] > 0)
        part_map[seen] = labels[node_id]
        visible[owner] |= seen
    parts = ids_in(part_map, IGNORE_LABEL)
    if not parts:
        return Item(job.name, None, reason="no part visible")
    folder = "training" if job.split == "train" else "validation"
    out = Output(Path(job.output))
    out.place(f"images/{folder}/{image.name}", image, link=job.link)
    out.write(f"{PART_FOLDER}/{folder}/{job.name}.png", png_bytes(part_map))
    annotations = [
        _coco(mask, ids.objects[nodes[i].raw_id], sorted({labels[k] for k in labels if owners[k] == i}))
        for i, mask in visible.items()
        if mask.any()
    ]
    return Item(
        job.name,
        job.split,
        files=out.files,
        classes={"object": sorted({a["category_id"] for a in annotations}), "object_part": parts},
        annotations={"file_name": image.name, "height": shape[0], "width": shape[1], "instances": annotations},
    )


def instance_json(items: Sequence[Item], split: str) -> bytes:
    """COCO json of one split's object instances; category ids are object labels 0..43."""
    images: list[dict] = []
    annotations: list[dict] = []
    chosen = [item.annotations for item in items if item.split == split]
    for image_id, entry in enumerate(entry for entry in chosen if entry is not None):
        images.append({"id": image_id, **{key: entry[key] for key in ("file_name", "height", "width")}})
        for instance in entry["instances"]:  # type: ignore[attr-defined]
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **instance})
    categories = [{"id": i, "name": name} for i, name in enumerate(shipped("ade20k_part_234").label_objects)]
    return json_bytes({"images": images, "annotations": annotations, "categories": categories})


def make_jobs(root: Path, *, output: Path, link: bool) -> list[AdeJob]:
    """One job per annotation file of both splits, in order of name. Raises when there is none or a name comes twice."""
    jobs: dict[str, AdeJob] = {}
    for folder, split in SPLITS.items():
        for path in sorted((root / folder).rglob("*.json")) if (root / folder).is_dir() else ():
            if path.name.startswith("._"):
                continue
            if path.stem in jobs:
                raise ValueError(f"{path} and {jobs[path.stem].annotation} have one name; image names must be unique")
            jobs[path.stem] = AdeJob(path.stem, split, str(path), str(output), link)
    if not jobs:
        raise FileNotFoundError(
            f"{root} holds no training/**/*.json or validation/**/*.json; expected .../ADE20K_2021_17_01/images/ADE "
            f"(the 2016 and 2017 releases have _atr.txt files instead and are not read)"
        )
    return [jobs[name] for name in sorted(jobs)]


def _first(value: object) -> int | None:
    """MATLAB's json: a number, or an empty list for none."""
    if isinstance(value, list):
        return int(value[0]) if value else None
    return int(value)  # type: ignore[call-overload]


def _mask(path: Path, node: Node, shape: tuple[int, int], image: Path) -> np.ndarray:
    mask_path = path.parent / node.mask
    mask = read_label(mask_path, bits=8)
    if mask.shape != shape:
        check_size(mask_path, mask.shape, image)
    return mask


def _coco(mask: np.ndarray, category: int, parts: Sequence[int]) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "category_id": category,
        "part_category_id": list(parts),
        "segmentation": {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")},
        "area": int(mask.sum()),
        "bbox": [float(v) for v in coco_mask.toBbox(rle)],
        "iscrowd": 0,
    }
