"""ADE20K-Part-234 in the layout of OV-PARTS: 16-bit part PNGs and objects as COCO instances in two json files.

The val list is the validation images and, as in the benchmark, the training images that show unseen objects, of which
only unseen instances count.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from partseg.data import coco, io, layout
from partseg.data.dataset import Mapper, PartSegDataset, build, check_split
from partseg.structures import Annotation, Record
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped

FOLDER_NAMES = ("ADE20KPart234", "ADE20K-Part-234")
PART_FOLDER = "annotations_detectron2_part"
LABEL_BITS = 16
SPLIT_FOLDERS = {"train": "training", "val": "validation"}

_log = logging.getLogger(__name__)


def ade20k_part_234(
    root: str | Path,
    split: str,
    *,
    vocabulary: str = "ade20k_part_234",
    mapper: Mapper | None = None,
    seed: int = 0,
    shots: int | None = None,
    all_seen: bool = False,
    unseen_objects: Sequence[str] | None = None,
    unseen_training_images: bool = True,
    name: str = "ade20k_part_234",
) -> PartSegDataset:
    """Split "train" or "val" of the data set at `root` (either spelling of the folder, or its parent).

    `shots` keeps the images of train_{shots}shot.json, `all_seen` hides no class in training, `unseen_objects` replaces
    the benchmark's split. `unseen_training_images=False` leaves the training images out of val, which makes unseen
    scores incomparable with published ones.
    """
    check_split(split)
    root = io.resolve_root(root, names=FOLDER_NAMES, markers=[("images", PART_FOLDER)])
    labels = shipped(vocabulary).with_unseen(unseen_objects)
    skipped: dict[str, int] = {}
    records = _records(root, split, labels, skipped, shots=shots if split == "train" else None)
    if split == "val" and unseen_training_images:
        records += _unseen_only(_records(root, "train", labels, skipped), labels)
    if any(skipped.values()):
        _log.warning("%s %s: annotations left out: %s", name, split, skipped)
    return build(
        records,
        label_vocabulary=labels,
        mapper=mapper,
        seed=seed,
        name=name,
        split=split,
        all_seen=all_seen,
        skipped=skipped,
    )


def _records(
    root: Path, split: str, labels: Vocabulary, skipped: dict[str, int], *, shots: int | None = None
) -> list[Record]:
    folder = SPLIT_FOLDERS[split]
    images = io.files_by_stem(root / "images" / folder)
    annotated = _read_instances(root / f"ade20k_instance_{split}.json", labels, skipped)
    absent = sorted(set(annotated) - set(images))
    if absent:
        raise FileNotFoundError(
            f"ade20k_instance_{split}.json lists {len(absent)} images that {root / 'images' / folder} lacks, the first "
            f"is {absent[0]}; ADE_frame_* images are in the full 2021 release of ADE20K only"
        )
    if shots is not None:
        images = io.keep_listed(images, root / f"train_{shots}shot.json")
    parts = io.match_labels(images, root / PART_FOLDER / folder)
    without = sum(stem not in annotated for stem in images)
    skipped["image_without_instances"] = skipped.get("image_without_instances", 0) + without
    return [
        Record(
            image_id=stem,
            file_name=str(path),
            object_part_file_name=str(parts[stem]),
            annotations=annotated.get(stem, ()),
            label_bits=LABEL_BITS,
        )
        for stem, path in images.items()
    ]


def _read_instances(path: Path, labels: Vocabulary, skipped: dict[str, int]) -> dict[str, tuple[Annotation, ...]]:
    """Instances per image stem, in file order, which is painting order; category_id is the object id as it stands."""
    data = coco.read_coco(path)
    stems = coco.coco_stems(data, path)
    found: dict[str, list[Annotation]] = {stem: [] for stem in stems.values()}
    positions = [labels.label_objects.index(name) for name in labels.objects]
    for annotation in data["annotations"]:
        object_id = annotation["category_id"]
        if not 0 <= object_id < labels.num_objects:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} has category_id {object_id}, allowed are 0.."
                f"{labels.num_objects - 1}; the file belongs to another data set or numbering"
            )
        if annotation["image_id"] not in stems:
            raise ValueError(f"{path}: annotation {annotation.get('id')} belongs to no image of the file")
        segmentation = coco.usable_segmentation(annotation, skipped)
        if segmentation is not None:
            found[stems[annotation["image_id"]]].append(Annotation("object", positions[object_id], segmentation))
    _check_names(data["categories"], labels, path)
    return {stem: tuple(instances) for stem, instances in found.items()}


def _check_names(categories: Sequence[Mapping[str, Any]], labels: Vocabulary, path: Path) -> None:
    for category in categories:
        expected = labels.objects[category["id"]] if 0 <= category["id"] < labels.num_objects else None
        if category.get("name", expected) != expected:
            raise ValueError(
                f"{path}: category {category['id']} is called {category['name']!r}, the vocabulary says {expected!r}"
            )


def _unseen_only(records: Sequence[Record], labels: Vocabulary) -> list[Record]:
    """Training records with at least one unseen instance; their seen instances do not count."""
    kept = []
    for record in records:
        instances = tuple(
            replace(a, counted=labels.label_objects[a.label] in labels.unseen_objects) for a in record.annotations or ()
        )
        if any(instance.counted for instance in instances):
            kept.append(replace(record, annotations=instances))
    return kept


def scan(name: str, root: str, splits: Sequence[str], vocabulary: str) -> layout.Layout:
    """Everything at `root`, and what is missing or too many."""
    folder = io.resolve_root(root, names=FOLDER_NAMES, markers=[("images", PART_FOLDER)])
    labels = shipped(vocabulary)
    findings = [*layout.strays(folder)]
    records: dict[str, tuple[Record, ...]] = {}
    for split in splits:
        below = SPLIT_FOLDERS[split]
        images = layout.files(folder / "images" / below, io.IMAGE_SUFFIXES, split, findings)
        parts = layout.files(folder / PART_FOLDER / below, (".png",), split, findings)
        findings += layout.unmatched(split, images, parts, "part label")
        path = folder / f"ade20k_instance_{split}.json"
        annotated, sizes = _scan_instances(path, split, labels, findings)
        findings += layout.unmatched(split, images, annotated, f"entry in {path.name}")
        records[split] = tuple(
            Record(
                image_id=stem,
                file_name=str(image),
                height=sizes[stem][0] if stem in sizes else None,
                width=sizes[stem][1] if stem in sizes else None,
                object_part_file_name=str(parts[stem]),
                annotations=tuple(annotated.get(stem, ())),
                label_bits=LABEL_BITS,
            )
            for stem, image in images.items()
            if stem in parts
        )
    expected = {"train": {"images": 7347}, "val": {"images": 1016}} if name == "ade20k_part_234" else {}
    return layout.Layout(folder, vocabulary, records, tuple(findings), expected, parts_may_leave_objects=True)


def _scan_instances(
    path: Path, split: str, labels: Vocabulary, findings: list[layout.Finding]
) -> tuple[dict[str, list[Annotation]], dict[str, tuple[int, int]]]:
    """Instances per image stem and the sizes that the file states; what cannot be used becomes findings."""
    try:
        data = coco.read_coco(path)
        stems = coco.coco_stems(data, path)
    except (ValueError, FileNotFoundError) as error:
        remedy = "fetch it again"
        findings.append(
            layout.finding(split, "unreadable instance file", [str(error)], changes_score=True, remedy=remedy)
        )
        return {}, {}
    found: dict[str, list[Annotation]] = {stem: [] for stem in stems.values()}
    strange: list[str] = []
    skipped: dict[str, int] = {}
    for annotation in data["annotations"]:
        category, image_id = annotation["category_id"], annotation["image_id"]
        if image_id not in stems or not 0 <= category < labels.num_objects:
            strange.append(f"annotation {annotation.get('id')}: image {image_id}, category {category}")
            continue
        segmentation = coco.usable_segmentation(annotation, skipped)
        if segmentation is not None:
            label = labels.label_objects.index(labels.objects[category])
            found[stems[image_id]].append(Annotation("object", label, segmentation))
    if strange:
        remedy = f"categories are 0..{labels.num_objects - 1}; the file belongs to another data set"
        kind = "instance of no image or category"
        findings.append(layout.finding(split, kind, strange, changes_score=True, remedy=remedy))
    findings += layout.skipped(split, skipped)
    sizes = {stems[i["id"]]: (i["height"], i["width"]) for i in data["images"] if i.get("height") and i.get("width")}
    return found, sizes
