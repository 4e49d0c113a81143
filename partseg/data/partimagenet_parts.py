"""PartImageNet as published: 40 parts of 11 super-categories as instances; the super-category is an image label."""

from __future__ import annotations

from pathlib import Path

from partseg.data import coco, io
from partseg.data.dataset import Mapper, PartSegDataset, build, check_split
from partseg.data.partimagenet import FOLDER_NAMES, LAYOUTS, SPLITS, find_annotations, find_images
from partseg.structures import Annotation, Record
from partseg.vocabulary.shipped import shipped


def partimagenet_parts(
    root: str | Path,
    split: str,
    *,
    vocabulary: str = "partimagenet_parts",
    mapper: Mapper | None = None,
    seed: int = 0,
    all_seen: bool = False,
    name: str = "partimagenet_parts",
) -> PartSegDataset:
    """Split "train", "val" or "test" of the data set at `root`, of any layout that `partimagenet_40` reads.

    Broken, empty and crowd annotations, and images that have no other, are left out and counted in `skipped`.
    """
    check_split(split, allowed=SPLITS)
    root = io.resolve_root(root, names=FOLDER_NAMES, markers=LAYOUTS)
    path, labels = find_annotations(root, split), shipped(vocabulary)
    data = coco.read_coco(path)
    stems = coco.coco_stems(data, path)
    places = {f"{owner} {part}": k for k, (owner, part) in enumerate(labels.pairs)}
    strange = [c["name"] for c in data["categories"] if c["name"] not in places]
    if strange:
        raise ValueError(f"{path} has categories that are not PartImageNet's 40: {strange[:3]}")
    label_of = {category["id"]: places[category["name"]] for category in data["categories"]}
    skipped: dict[str, int] = {}
    found: dict[object, list[Annotation]] = {image: [] for image in stems}
    for annotation in data["annotations"]:
        segmentation = coco.usable_segmentation(annotation, skipped)
        if segmentation is not None:
            found[annotation["image_id"]].append(
                Annotation("object_part", label_of[annotation["category_id"]], segmentation)
            )
    kept = {image["id"]: image for image in data["images"] if found[image["id"]]}
    skipped["image_without_annotations"] = len(data["images"]) - len(kept)
    photos = find_images(root, split, sorted(stems[image] for image in kept))
    owners = {k: labels.label_objects.index(owner) for k, (owner, _) in enumerate(labels.pairs)}
    records = [
        Record(
            image_id=stems[key],
            file_name=str(photos[stems[key]]),
            height=image.get("height"),
            width=image.get("width"),
            annotations=tuple(found[key]),
            image_labels=(owners[found[key][0].label],),
        )
        for key, image in kept.items()
    ]
    return build(
        sorted(records, key=lambda record: record.image_id),
        label_vocabulary=labels,
        mapper=mapper,
        seed=seed,
        name=name,
        split=split,
        all_seen=all_seen,
        skipped=skipped,
    )
