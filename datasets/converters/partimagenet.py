"""The 40-class selection of PartImageNet_Seg as an index beside the data; used by datasets/prepare_partimagenet.py."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from converters.conversion import Item
from converters.labels import check_size, photo_size
from partseg.data import coco, partimagenet
from partseg.utils.files import json_bytes
from partseg.vocabulary.shipped import shipped

TOOL_VERSION = 1


@dataclass(frozen=True)
class SelectionJob:
    """One photo of the 40 classes, the size its annotation file states, and the labels it has."""

    name: str
    split: str
    image: str
    size: tuple[int, int] | None
    object: int
    parts: tuple[int, ...]


def check(job: SelectionJob) -> Item:
    """The photo decodes and has the stated size (rows, columns)."""
    path = Path(job.image)
    if job.size is None:
        photo_size(path)
    else:
        check_size(f"the annotation of {path.name}", job.size, path)
    return Item(job.name, job.split, classes={"object": [job.object], "object_part": list(job.parts)})


def make_jobs(root: Path, split: str) -> tuple[list[SelectionJob], dict[str, int]]:
    """Jobs of one split in order of name, and how many annotations loaders will leave out, by reason.

    Training lists all 40 classes; hiding the unseen ones is the loader's work. Raises when a photo is missing.
    """
    path = partimagenet.find_annotations(root, split)
    data, names, labels = coco.read_coco(path), partimagenet.source(), shipped("partimagenet_40")
    stems = coco.coco_stems(data, path)
    kept = {key: stem for key, stem in stems.items() if partimagenet.synset_of(stem) in names.synsets}
    if not kept:
        raise ValueError(f"{path} lists no image of the 40 classes; is it PartImageNet_Seg?")
    skipped: dict[str, int] = defaultdict(int)
    annotations = partimagenet.read_annotations(data, kept, labels, names, skipped, path)
    photos = partimagenet.find_images(root, split, sorted(kept.values()))
    jobs = []
    for image in data["images"]:
        if image["id"] not in kept:
            continue
        stem = kept[image["id"]]
        jobs.append(
            SelectionJob(
                name=f"{split}/{stem}",
                split=split,
                image=str(photos[stem]),
                size=(image["height"], image["width"]) if image.get("height") and image.get("width") else None,
                object=labels.label_objects.index(names.synsets[partimagenet.synset_of(stem)][0]),
                parts=tuple(sorted({annotation.label for annotation in annotations[image["id"]]})),
            )
        )
    skipped["image_without_annotations"] = sum(not job.parts for job in jobs)
    return sorted(jobs, key=lambda job: job.name), {reason: n for reason, n in sorted(skipped.items()) if n}


def index_json(jobs: list[SelectionJob]) -> bytes:
    """`{"train": ["n01440764_10.JPEG", ...], "val": [...]}`, what the loader reads as partimagenet_40_index.json."""
    splits: dict[str, list[str]] = defaultdict(list)
    for job in jobs:
        splits[job.split].append(Path(job.image).name)
    return json_bytes(dict(splits), indent=1)
