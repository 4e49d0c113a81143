"""PartImageNet as released: every class of PartImageNet_Seg, parts named by super-category ("quadruped head").

The same folders as PartImageNet-40 (see partimagenet.py). Parts are instances, the super-category is an image label. A
record's class name is ImageNet's word for the synset in its file name, for phrases such as "the head of the golden
retriever".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo

from partseg.data import coco, io
from partseg.data.dataset import Mapper, PartSegDataset, build, check_split
from partseg.data.partimagenet import FOLDER_NAMES, LAYOUTS, SPLITS, find_annotations, find_images, synset_of
from partseg.structures import Annotation, Record
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped

_log = logging.getLogger(__name__)


def partimagenet(
    root: str | Path,
    split: str,
    *,
    vocabulary: str = "partimagenet",
    mapper: Mapper | None = None,
    seed: int = 0,
    all_seen: bool = False,
    unseen_objects: Sequence[str] | None = None,
    name: str = "partimagenet",
) -> PartSegDataset:
    """Split "train", "val" or "test" of the data set at `root`.

    Broken, empty and crowd annotations, and images that have no other, are left out and counted in `skipped`.
    """
    check_split(split, allowed=SPLITS)
    root = io.resolve_root(root, names=FOLDER_NAMES, markers=LAYOUTS)
    labels = shipped(vocabulary).with_unseen(unseen_objects)
    path = find_annotations(root, split)
    data = coco.read_coco(path)
    stems = coco.coco_stems(data, path)
    skipped: dict[str, int] = {}
    annotations = _annotations(data, labels, skipped, path)
    photos, classes = find_images(root, split, sorted(stems.values())), ImageNetInfo()
    known = set(classes.label_names())
    records = []
    for image in sorted(data["images"], key=lambda image: stems[image["id"]]):
        if found := annotations.get(image["id"]):
            stem = stems[image["id"]]
            synset = synset_of(stem)
            word = classes.label_name_to_description(synset).split(",")[0] if synset in known else None
            size = {"height": image.get("height"), "width": image.get("width")}
            owner = labels.label_objects.index(labels.pairs[found[0].label][0])
            labelled = Record(stem, str(photos[stem]), **size, annotations=tuple(found), image_labels=(owner,))
            records.append(replace(labelled, class_name=word))
    skipped["image_without_annotations"] = len(data["images"]) - len(records)
    if any(skipped.values()):
        _log.warning("%s %s: left out: %s", name, split, skipped)
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


def _annotations(
    data: Mapping[str, Any], labels: Vocabulary, skipped: dict[str, int], path: Path
) -> dict[Any, list[Annotation]]:
    """Annotated parts per image id, in file order; ValueError for a category that PartImageNet has not."""
    ids = {f"{owner} {part}": label for label, (owner, part) in enumerate(labels.pairs)}
    names = {category["id"]: str(category.get("name")).lower() for category in data["categories"]}
    strange = sorted(set(names.values()) - set(ids))
    if strange:
        raise ValueError(f"{path} has categories that are not PartImageNet's: {strange[:5]}; those are {sorted(ids)}")
    images = {image["id"] for image in data["images"]}
    found: dict[Any, list[Annotation]] = {}
    for annotation in data["annotations"]:
        if annotation["image_id"] not in images or annotation["category_id"] not in names:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} has image_id {annotation['image_id']} and category_id "
                f"{annotation['category_id']}; the file lists no such image or category"
            )
        segmentation = coco.usable_segmentation(annotation, skipped)
        if segmentation is not None:
            label = ids[names[annotation["category_id"]]]
            found.setdefault(annotation["image_id"], []).append(Annotation("object_part", label, segmentation))
    return found
