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

from partseg.data import coco, io
from partseg.data.dataset import Mapper, PartSegDataset, build, check_split
from partseg.structures import Instance, Record
from partseg.vocabulary import Vocabulary

FOLDER_NAMES = ("ADE20KPart234", "ADE20K-Part-234")
PART_FOLDER = "annotations_detectron2_part"
LABEL_BITS = 16
SPLIT_FOLDERS = {"train": "training", "val": "validation"}

_log = logging.getLogger(__name__)


def vocabulary() -> Vocabulary:
    """The 234 object-parts with the benchmark's unseen objects."""
    return Vocabulary.from_yaml(Path(__file__).parent / "vocabularies" / "ade20k_part_234.yaml")


def ade20k_part_234(
    root: str | Path,
    split: str,
    *,
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
    labels = vocabulary().with_unseen(unseen_objects)
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
            instances=annotated.get(stem, ()),
            label_bits=LABEL_BITS,
        )
        for stem, path in images.items()
    ]


def _read_instances(path: Path, labels: Vocabulary, skipped: dict[str, int]) -> dict[str, tuple[Instance, ...]]:
    """Instances per image stem, in file order, which is painting order; category_id is the object id as it stands."""
    data = coco.read_coco(path)
    stems = coco.coco_stems(data, path)
    found: dict[str, list[Instance]] = {stem: [] for stem in stems.values()}
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
            found[stems[annotation["image_id"]]].append(Instance(object_id, segmentation))
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
        instances = tuple(replace(i, counted=not labels.seen_of_object[i.object_id]) for i in record.instances or ())
        if any(instance.counted for instance in instances):
            kept.append(replace(record, instances=instances))
    return kept
