"""PartImageNet-40: images of 40 synsets, one object each, parts as COCO polygons.

Reads PartImageNet_Seg as unpacked, or as PartCLIPSeg's own script leaves it, and layouts with one folder per synset.
An index file `partimagenet_40_index.json` in the root, `{"train": ["n01440764_10", ...], "val": [...]}` (names with or
without suffix, other keys ignored), restricts the images; without it the synset in the file name decides.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from partseg.data import coco, io, layout
from partseg.data.dataset import Mapper, PartSegDataset, build, check_split
from partseg.structures import Annotation, Record
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped

FOLDER_NAMES = ("PartImageNet", "PartImageNet_Seg", "partimagenet")
LAYOUTS = (("images", "annotations"), ("images", "train.json"), ("images", "val.json"), ("val", "val.json"))
SPLITS = ("train", "val", "test")
INDEX_FILE = "partimagenet_40_index.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """How the annotation files name things: synset -> (object, super-category), category id -> category name."""

    synsets: Mapping[str, tuple[str, str]]
    categories: Mapping[int, str]

    def part_of(self, category: str, supercategory: str) -> str | None:
        """Part name of category "Car Side Mirror" for objects of `supercategory` "Car"; None if it is another's."""
        prefix = f"{supercategory} "
        return category.removeprefix(prefix).lower() if category.startswith(prefix) else None


def source() -> Source:
    """The 40 synsets and the categories of the original annotation files."""
    data = yaml.safe_load(Path(__file__).with_name("partimagenet_40_source.yaml").read_text(encoding="utf-8"))
    synsets = {wnid: (entry["object"], entry["supercategory"]) for wnid, entry in data["synsets"].items()}
    return Source(synsets, data["categories"])


def synset_of(stem: str) -> str:
    """Synset in an image name: "n01440764_10" -> "n01440764"."""
    return stem.split("_")[0]


def partimagenet_40(
    root: str | Path,
    split: str,
    *,
    vocabulary: str = "partimagenet_40",
    mapper: Mapper | None = None,
    seed: int = 0,
    all_seen: bool = False,
    unseen_objects: Sequence[str] | None = None,
    name: str = "partimagenet_40",
) -> PartSegDataset:
    """Split "train", "val" or "test" of the data set at `root`; training keeps images of seen objects only.

    Broken, empty and crowd annotations, and images that have no other, are left out and counted in `skipped`.
    """
    check_split(split, allowed=SPLITS)
    root = io.resolve_root(root, names=FOLDER_NAMES, markers=LAYOUTS)
    labels, names = shipped(vocabulary).with_unseen(unseen_objects), source()
    annotation_file = find_annotations(root, split)
    data = coco.read_coco(annotation_file)
    stems = coco.coco_stems(data, annotation_file)
    hidden = set(labels.unseen_objects) if split == "train" and not all_seen else set()
    wanted = {wnid for wnid, (object_name, _) in names.synsets.items() if object_name not in hidden}
    kept = {image_id: stem for image_id, stem in stems.items() if synset_of(stem) in wanted}
    if (root / INDEX_FILE).is_file():
        listed = _read_index(root / INDEX_FILE, split, known=set(stems.values()), annotation_file=annotation_file)
        kept = {image_id: stem for image_id, stem in kept.items() if stem in listed}
    skipped: dict[str, int] = {}
    annotations = read_annotations(data, kept, labels, names, skipped, annotation_file)
    paths = find_images(root, split, sorted(kept.values()))
    records = [_record(image, kept[image["id"]], paths, annotations) for image in data["images"] if image["id"] in kept]
    labelled = sorted((r for r in records if r.annotations), key=lambda record: record.image_id)
    skipped["image_without_annotations"] = len(records) - len(labelled)
    if any(skipped.values()):
        _log.warning("%s %s: left out: %s", name, split, skipped)
    return build(
        labelled,
        label_vocabulary=labels,
        mapper=mapper,
        seed=seed,
        name=name,
        split=split,
        all_seen=all_seen,
        skipped=skipped,
    )


def find_annotations(root: Path, split: str) -> Path:
    candidates = [
        root / "annotations" / split / f"{split}.json",
        root / "annotations" / f"{split}.json",
        root / f"{split}.json",
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no annotations for split {split!r}: looked for {', '.join(map(str, candidates))}")


def _read_index(path: Path, split: str, *, known: Collection[str], annotation_file: Path) -> set[str]:
    data = io.read_json(path)
    if not isinstance(data, Mapping) or not isinstance(data.get(split), list):
        raise ValueError(f"{path} has no list of images under {split!r}; write it again with prepare_partimagenet.py")
    listed = {io.file_stem(entry) for entry in data[split]}
    absent = sorted(listed - set(known))
    if absent:
        raise ValueError(
            f"{path} lists {len(absent)} images that {annotation_file} lacks, the first is {absent[0]}; "
            "write the index again with prepare_partimagenet.py or delete it"
        )
    return listed


def _category_names(data: Mapping[str, Any], names: Source, path: Path) -> Mapping[int, str]:
    """Category id -> name as the file says, or the original one where PartCLIPSeg's script replaced the list only."""
    own = {category["id"]: str(category.get("name")) for category in data["categories"]}
    known = set(names.categories.values())
    if own and set(own.values()) <= known:
        return own
    if known & set(own.values()):
        strange = sorted(set(own.values()) - known)[:5]
        raise ValueError(f"{path} has categories that are not PartImageNet's: {strange}")
    return names.categories


def read_annotations(
    data: Mapping[str, Any],
    kept: Mapping[Any, str],
    labels: Vocabulary,
    names: Source,
    skipped: dict[str, int],
    path: Path,
) -> dict[Any, list[Annotation]]:
    """Annotated object-parts per image id, in file order; the object is the one of the image's synset."""
    categories = _category_names(data, names, path)
    ids = {pair: i for i, pair in enumerate(labels.pairs)}
    found: dict[Any, list[Annotation]] = {image_id: [] for image_id in kept}
    for annotation in data["annotations"]:
        image_id = annotation["image_id"]
        if image_id not in kept:
            continue
        if annotation["category_id"] not in categories:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} has category_id {annotation['category_id']}, "
                f"allowed are {min(categories)}..{max(categories)}"
            )
        object_name, supercategory = names.synsets[synset_of(kept[image_id])]
        part = names.part_of(categories[annotation["category_id"]], supercategory)
        if (object_name, part) not in ids:
            skipped["part_of_another_object"] = skipped.get("part_of_another_object", 0) + 1
            continue
        segmentation = coco.usable_segmentation(annotation, skipped)
        if segmentation is not None:
            found[image_id].append(Annotation("object_part", ids[object_name, str(part)], segmentation))
    return found


def find_images(root: Path, split: str, stems: Sequence[str]) -> dict[str, Path]:
    """Photo of every stem: flat in images/{split} or {split}, or below in one folder per synset."""
    base = root / "images" / split if (root / "images" / split).is_dir() else root / split
    found = io.files_by_stem(base)
    for wnid in sorted({synset_of(stem) for stem in stems}):
        if (base / wnid).is_dir():
            found.update(io.files_by_stem(base / wnid))
    missing = [stem for stem in stems if stem not in found]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(stems)} images of split {split!r} are not in {base} (flat or by synset), "
            f"the first is {missing[0]}.JPEG; unpack the images again"
        )
    return found


def _record(
    image: Mapping[str, Any], stem: str, paths: Mapping[str, Path], annotations: Mapping[Any, Sequence[Annotation]]
) -> Record:
    return Record(
        image_id=stem,
        file_name=str(paths[stem]),
        height=image.get("height"),
        width=image.get("width"),
        annotations=tuple(annotations[image["id"]]),
    )


def scan(name: str, root: str, splits: Sequence[str], vocabulary: str) -> layout.Layout:
    """Everything at `root`, and what is missing or too many; the index file does not restrict it."""
    folder = io.resolve_root(root, names=FOLDER_NAMES, markers=LAYOUTS)
    labels, names = shipped(vocabulary), source()
    findings = [*layout.strays(folder)]
    records: dict[str, tuple[Record, ...]] = {}
    for split in splits:
        path = find_annotations(folder, split)
        data = coco.read_coco(path)
        selected = {
            image_id: stem for image_id, stem in coco.coco_stems(data, path).items() if synset_of(stem) in names.synsets
        }
        skipped: dict[str, int] = {}
        annotations = read_annotations(data, selected, labels, names, skipped, path)
        images = _photos(folder, split, set(selected.values()), findings)
        wanted = dict.fromkeys(selected.values(), path)
        findings += layout.unmatched(split, wanted, images, "photo", one_way=True)
        foreign = skipped.pop("part_of_another_object", 0)
        if foreign:
            remedy = "category and synset of the file name disagree; compare with the original annotation file"
            findings.append(layout.Finding(split, "part of another object", foreign, True, remedy))
        findings += layout.skipped(split, skipped)
        records[split] = tuple(
            _record(image, selected[image["id"]], images, annotations)
            for image in data["images"]
            if selected.get(image["id"]) in images
        )
    return layout.Layout(folder, vocabulary, records, tuple(findings))


def _photos(root: Path, split: str, stems: Collection[str], findings: list[layout.Finding]) -> dict[str, Path]:
    """Photos by stem: flat, or in one folder per synset."""
    base = root / "images" / split if (root / "images" / split).is_dir() else root / split
    found = layout.files(base, io.IMAGE_SUFFIXES, split, findings)
    for wnid in sorted({synset_of(stem) for stem in stems}):
        if (base / wnid).is_dir():
            found.update(layout.files(base / wnid, io.IMAGE_SUFFIXES, split, findings))
    return found
