"""Records from COCO-style JSON: instances of objects and parts (masks or boxes, parents, scores) and phrases.

Categories are matched by name with the vocabulary: "dog" is an object, "dog's head", "dog:head" and "dog head" are its
part. This is also the form in which partseg writes predictions that another training takes as labels: there category 0
"part" holds the parts of systems that name none. PACO, LVIS and COCO are read like this with `vocabulary="categories"`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, cast

from partseg.data import coco, io
from partseg.data.dataset import Mapper, PartSegDataset, build, in_split
from partseg.data.origin import check_origin, count_without_parts
from partseg.structures import Annotation, Checked, InstanceLevel, Phrase, Record
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.words import as_vocabulary

NAMELESS = "part"
"""Category of parts without a name."""

_log = logging.getLogger(__name__)


def coco_style(
    root: str | Path,
    split: str,
    *,
    vocabulary: str,
    images: Mapping[str, str] | str = "images",
    annotations: Mapping[str, str | Sequence[str]] | str = "annotations_{split}.json",
    mapper: Mapper | None = None,
    seed: int = 0,
    all_seen: bool = False,
    unseen_objects: Sequence[str] | None = None,
    min_score: float = 0.0,
    require_masks: bool = False,
    val_share: float | None = None,
    origin: Mapping[str, str | None] | None = None,
    name: str = "coco_style",
) -> PartSegDataset:
    """Split of a data set whose labels are COCO JSON files.

    `images` is the folder that `file_name`s are relative to and `annotations` the file, several or a glob (shards),
    each below `root`, or per split a mapping of them; "{split}" stands for the split. Annotations may name their object
    with `parent_id` (the id of another annotation), carry a `score`, of which `min_score` is asked, and `phrases`, a
    list of wordings, which need no category. Crowd, broken and empty annotations, and boxes outside the image, are left
    out and counted in `skipped`; images of which none is left stay, as unlabelled ones. `vocabulary="categories"` takes
    the files' own names, and `require_masks` refuses annotations that are boxes only. `val_share` splits a file that
    holds all images, by their names' hash. `origin` is what labels that a network made must say of themselves
    (`origin.check_origin`).
    """
    root = Path(root).expanduser()
    folder = root / _of_split(images, split, "images")
    files = [
        (path, coco.read_coco(path, optional=("category_id",)))
        for path in _files(root, _of_split(annotations, split, "annotations"))
    ]
    by_network = check_origin(files, origin)
    labels = words_of(files, name=name) if vocabulary == "categories" else as_vocabulary(vocabulary)
    labels = labels.with_unseen(unseen_objects)
    skipped: dict[str, int] = {}
    records: list[Record] = []
    for path, data in files:
        records += _records(data, path, folder, labels, skipped, min_score)
    if require_masks:
        _check_masks(records, name)
    names = [record.image_id for record in records]
    if len(set(names)) < len(names):
        repeated = sorted({n for n in names if names.count(n) > 1})[:3]
        raise ValueError(f"the annotation files of {name!r} list images twice, for example {repeated}")
    if val_share is not None:
        chosen = in_split(names, split, val_share=val_share)
        records = [record for record in records if record.image_id in chosen]
    if any(skipped.values()):
        _log.warning("%s %s: annotations left out: %s", name, split, skipped)
    if by_network:
        count_without_parts(records, skipped, name=name)
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


def _of_split(value: Mapping[str, Any] | str | Sequence[str], split: str, what: str) -> Any:
    if isinstance(value, Mapping):
        if split not in value:
            raise ValueError(f"dataset.{what} has no split {split!r}; it has {sorted(value)}")
        value = value[split]
    if isinstance(value, str):
        return value.replace("{split}", split)
    return [str(item).replace("{split}", split) for item in value]


def _files(root: Path, names: str | Sequence[str]) -> list[Path]:
    """The annotation files; FileNotFoundError for a name or glob that matches none."""
    found: list[Path] = []
    for name in [names] if isinstance(names, str) else names:
        path = root / Path(name).expanduser()
        matches = sorted(map(Path, glob(str(path)))) if has_magic(name) else [path]  # noqa: PTH207  may be absolute
        missing = [path for path in matches if not path.is_file()]
        if missing or not matches:
            raise FileNotFoundError(f"no annotation file {root / name}; set dataset.annotations or dataset.root")
        found += matches
    return found


def words_of(files: Sequence[tuple[Path, Mapping[str, Any]]], *, name: str) -> Vocabulary:
    """The categories of the files as a vocabulary: those that name a part of an object are parts, all others objects.

    "dog:head" is a part; where others are called "dog" or "dog:tail", so is "head" with the supercategory "dog"; in
    files without a colon that have a "dog", "dog head" and "dog's head" are. Prompts say "trash can" for "trash_can".
    ValueError for files without categories.
    """
    listed = [category for _, data in files for category in data["categories"]]
    categories = list(dict.fromkeys((str(each["name"]), str(each.get("supercategory"))) for each in listed))
    if not categories:
        raise ValueError(f"{files[0][0]} has no categories: give dataset.vocabulary=<YAML file>")
    names = {name for name, _ in categories}
    names |= {name.partition(":")[0] for name in names}
    found = [_pair(each, above, names) for each, above in categories]
    pairs = list(dict.fromkeys(pair for pair in found if pair is not None))
    objects = dict.fromkeys(each for (each, _), pair in zip(categories, found) if pair is None)
    owners = dict.fromkeys(owner for owner, _ in pairs if owner not in objects)
    words = {word for pair in pairs for word in pair} | set(objects)
    return Vocabulary(
        pairs=tuple(pairs),
        label_objects=(*objects, *owners),
        name=name,
        prompt_names={word: word.replace("_", " ") for word in sorted(words) if "_" in word},
    )


def _pair(name: str, above: str, names: Collection[str]) -> tuple[str, str] | None:
    """(object, part) of a category, None for an object; `above` is its supercategory, `names` are all there are."""
    owner, colon, part = name.partition(":")
    if colon:
        return owner, part
    if above in names and above != name:
        return above, name
    owners = [each for each in names if name.startswith((f"{each} ", f"{each}'s "))]
    if not owners or any(":" in each for each in names):
        return None
    owner = max(owners, key=len)
    return owner, name[len(owner) :].removeprefix("'s").strip()


def _check_masks(records: Sequence[Record], name: str) -> None:
    boxes = [record for record in records if any(a.segmentation is None for a in record.annotations or ())]
    if boxes:
        raise ValueError(
            f"{len(boxes)} images of {name!r} have annotations without a mask, the first is {boxes[0].file_name}; "
            "set dataset.require_masks=false to train on their boxes"
        )


def _records(
    data: Mapping[str, Any],
    path: Path,
    folder: Path,
    labels: Vocabulary,
    skipped: dict[str, int],
    min_score: float,
) -> list[Record]:
    names = _category_labels(data.get("categories") or (), labels, path)
    by_image: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        if annotation["image_id"] not in by_image:
            raise ValueError(f"{path}: annotation {annotation.get('id')} belongs to no image of the file")
        by_image[annotation["image_id"]].append(annotation)
    return [_record(image, by_image[image["id"]], folder, names, skipped, min_score, path) for image in data["images"]]


def _record(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    folder: Path,
    names: Mapping[Any, tuple[InstanceLevel, int]],
    skipped: dict[str, int],
    min_score: float,
    path: Path,
) -> Record:
    kept: list[tuple[Mapping[str, Any], Any]] = []
    phrases = []
    for annotation in annotations:
        _check(annotation, path)
        if annotation.get("score", 1.0) < min_score:
            skipped["low_score"] = skipped.get("low_score", 0) + 1
            continue
        box_only = not annotation.get("segmentation") and "bbox" in annotation
        segmentation = None if box_only else coco.usable_segmentation(annotation, skipped)
        if segmentation is None and not box_only:
            continue
        if box_only and (fault := _box_fault(_box(annotation, path), image)):
            skipped[fault] = skipped.get(fault, 0) + 1
            continue
        if annotation.get("phrases") and segmentation is not None:
            level, label = names.get(annotation.get("category_id"), ("object", None))
            texts = tuple(map(str, annotation["phrases"]))
            phrases.append(Phrase(texts, segmentation, label if level == "object_part" else None))
        if annotation.get("category_id") in names:
            kept.append((annotation, segmentation))
        elif not annotation.get("phrases"):
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} has category_id {annotation.get('category_id')!r}, which "
                "the file's categories lack"
            )
    ids = {annotation.get("id") for annotation in annotations}
    places = {annotation.get("id"): i for i, (annotation, _) in enumerate(kept)}
    found = []
    for annotation, segmentation in kept:
        level, label = names[annotation["category_id"]]
        # PACO says obj_ann_id, which of an object is its own id
        parent_id = annotation.get("parent_id", annotation.get("obj_ann_id"))
        if parent_id is not None and parent_id not in ids:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} has parent_id {parent_id!r:.40}, which no annotation of "
                "its image has"
            )
        known_parent = parent_id not in (None, annotation.get("id"))
        parent = places.get(parent_id) if known_parent else None  # None, too, for one that was left out
        found.append(Annotation(level, label, segmentation, _box(annotation, path), parent, annotation.get("score")))
    labels = tuple(label for level, label in _listed(image, "category_ids", names, path) if level == "object")
    return Record(
        image_id=io.file_stem(image["file_name"]),
        file_name=str(folder / image["file_name"]),
        height=image.get("height"),
        width=image.get("width"),
        annotations=tuple(found),
        image_labels=labels,
        phrases=tuple(phrases),
        checked=_checked(image, names, path),
    )


def _listed(
    image: Mapping[str, Any], key: str, names: Mapping[Any, tuple[InstanceLevel, int]], path: Path
) -> list[tuple[InstanceLevel, int]]:
    """Classes that an image lists under `key`; ValueError for what is no list of category ids."""
    ids = image.get(key, [])
    if not isinstance(ids, list) or not all(type(each) is int and each in names for each in ids):
        raise ValueError(f"{path}: image {image['file_name']} has {key} {ids!r:.40}, not ids of the file's categories")
    return [names[each] for each in ids]


def _checked(image: Mapping[str, Any], names: Mapping[Any, tuple[InstanceLevel, int]], path: Path) -> Checked | None:
    """What LVIS and PACO say of an image's classes, None for files that say nothing."""
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    if not any(key in image for key in keys):
        return None
    return Checked(*(frozenset(_listed(image, key, names, path)) for key in keys))


def _check(annotation: Mapping[str, Any], path: Path) -> None:
    """ValueError for a score or phrases of another kind than `coco_style` says."""
    which = f"{path}: annotation {annotation.get('id')} has"
    if not _is_number(annotation.get("score", 1.0)):
        raise ValueError(f"{which} score {annotation['score']!r:.40}, not a number; leave it out where there is none")
    phrases = annotation.get("phrases", [])
    if not isinstance(phrases, list) or not all(isinstance(text, str) and text.strip() for text in phrases):
        raise ValueError(f"{which} phrases {phrases!r:.40}, not a list of texts")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(cast("float", value))


def _box(annotation: Mapping[str, Any], path: Path) -> tuple[float, float, float, float] | None:
    """COCO's left, top, width, height as left, top, right, bottom."""
    if "bbox" not in annotation:
        return None
    values = annotation["bbox"]
    numbers = isinstance(values, list) and all(map(_is_number, values))
    if not numbers or len(values) != 4 or min(values[2:]) < 0:
        raise ValueError(
            f"{path}: annotation {annotation.get('id')} has bbox {values!r}, not [left, top, width, height]"
        )
    left, top, width, height = map(float, values)
    return left, top, left + width, top + height


def _box_fault(box: tuple[float, float, float, float] | None, image: Mapping[str, Any]) -> str | None:
    """Why a box is of no use, or None."""
    assert box is not None
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        return "empty_box"
    width, height = image.get("width") or float("inf"), image.get("height") or float("inf")
    return "box_outside_image" if right <= 0 or bottom <= 0 or left >= width or top >= height else None


def _category_labels(
    categories: Sequence[Mapping[str, Any]], labels: Vocabulary, path: Path
) -> dict[Any, tuple[InstanceLevel, int]]:
    """Category id -> level and label; ValueError for names that the vocabulary lacks."""
    known: dict[str, tuple[InstanceLevel, int]] = {}
    for i, (owner, part) in enumerate(labels.pairs):
        known |= dict.fromkeys(spellings(owner, part), ("object_part", i))
    known |= {name: ("object", i) for i, name in enumerate(labels.label_objects)}
    known.setdefault(NAMELESS, ("object_part", -1))
    pairs: dict[tuple[str, str], tuple[InstanceLevel, int]] = {
        pair: ("object_part", i) for i, pair in enumerate(labels.pairs)
    }
    found: dict[Any, tuple[InstanceLevel, int]] = {}
    for category in categories:  # "dog:head", or "head" of the supercategory "dog"
        name = str(category.get("name"))
        label = known.get(name) or pairs.get((str(category.get("supercategory")), name))
        if label is not None:
            found[category["id"]] = label
    strange = [str(category.get("name")) for category in categories if category.get("id") not in found]
    if strange:
        raise ValueError(
            f"{path}: {len(strange)} categories are neither objects nor object-parts of vocabulary {labels.name!r}, "
            f'example {strange[:3]}; parts are called "dog\'s head", "dog:head" or "dog head"'
        )
    return found


def spellings(owner: str, part: str) -> tuple[str, str, str]:
    """How data sets spell the name of an object's part."""
    return f"{owner} {part}", f"{owner}:{part}", f"{owner}'s {part}"
