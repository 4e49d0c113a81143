"""What lies on disk, without raising: every image with its labels, and what is missing or too many in each split.

One function per layout; `scan` picks it by the builder that the catalog names. Loaders refuse such folders at the first
problem, the inspector lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from partseg.data import ade20k_part, catalog, coco, io, partimagenet, pascal_part
from partseg.structures import Instance
from partseg.utils.config import config_dir
from partseg.vocabulary import Vocabulary

KEPT_NAMES = 200
"""File names kept per finding; the count is always complete."""

SKIPPED = {
    "broken_polygon": "polygons without an area or beyond any picture",
    "broken_rle": "run lengths that do not fill their size",
    "crowd": "crowd annotations",
    "zero_area": "annotations of zero area",
    "empty_annotation": "annotations without a usable polygon",
}


@dataclass(frozen=True)
class Finding:
    """One kind of problem in one split. `changes_score`: a score on this data would differ from one on the real set."""

    split: str
    kind: str
    count: int
    changes_score: bool
    remedy: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One image to check. Label files, or instances and polygons, as the layout has them; None where it has none."""

    split: str
    name: str
    image: str
    object_part: str | None = None
    object: str | None = None
    bits: int = 8
    instances: tuple[Instance, ...] | None = None
    polygons: tuple[tuple[int, object], ...] | None = None
    object_label: int | None = None
    size: tuple[int, int] | None = None
    """(rows, columns) that the annotation file states."""


@dataclass(frozen=True)
class Layout:
    """All that is to be checked, and what the search itself found; `expected` maps a split to its published counts."""

    builder: str
    root: Path
    vocabulary: Vocabulary
    sources: tuple[Source, ...]
    findings: tuple[Finding, ...]
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    parts_may_leave_objects: bool = False
    """ADE20K's own labels have parts outside their instance; elsewhere there is none."""


def finding(split: str, kind: str, names: Sequence[str], *, changes_score: bool, remedy: str) -> Finding:
    """A finding about named files."""
    return Finding(split, kind, len(names), changes_score, remedy, tuple(names[:KEPT_NAMES]))


def scan(name: str, root: str | Path | None, splits: Sequence[str]) -> Layout:
    """The layout of catalog data set `name` at `root` (None: the catalog's own folder under `data`)."""
    if name not in catalog.names():
        raise KeyError(f"no data set {name!r}; the catalog has {', '.join(catalog.names())}")
    loaded = OmegaConf.load(config_dir() / "dataset" / f"{name}.yaml")
    node = OmegaConf.create({"data_root": "data", "dataset": loaded}).dataset
    layouts: dict[str, Callable[[str, str, Sequence[str]], Layout]] = {
        "pascal_part_116": _pascal,
        "ade20k_part_234": _ade20k,
        "partimagenet_40": _partimagenet,
    }
    builder = str(node._target_).rpartition(".")[2]
    if builder not in layouts:
        raise KeyError(f"data set {name!r} is built by {node._target_}; only {sorted(layouts)} can be inspected")
    return layouts[builder](name, str(root or node.root), splits)


def _pascal(name: str, root: str, splits: Sequence[str]) -> Layout:
    folder = io.resolve_root(
        root, names=pascal_part.FOLDER_NAMES, markers=(("images", pascal_part.PART_FOLDER, pascal_part.OBJECT_FOLDER),)
    )
    findings: list[Finding] = [*_strays(folder)]
    sources: list[Source] = []
    for split in splits:
        images = _files(folder / "images" / split, io.IMAGE_SUFFIXES, split, findings)
        parts = _files(folder / pascal_part.PART_FOLDER / split, (".png",), split, findings)
        objects = _files(folder / pascal_part.OBJECT_FOLDER / split, (".png",), split, findings)
        findings += _unmatched(split, images, parts, "part label")
        findings += _unmatched(split, images, objects, "object label")
        sources += [
            Source(split, stem, str(path), object_part=str(parts[stem]), object=str(objects[stem]))
            for stem, path in images.items()
            if stem in parts and stem in objects
        ]
    published = {
        "train": {"images": 8431, "(image, part) pairs": 53067},
        "val": {"images": 850, "(image, part) pairs": 4957},
    }
    expected = published if name == "pascal_part_116" else {}
    return Layout("pascal_part_116", folder, pascal_part.vocabulary(), tuple(sources), tuple(findings), expected)


def _ade20k(name: str, root: str, splits: Sequence[str]) -> Layout:
    folder = io.resolve_root(root, names=ade20k_part.FOLDER_NAMES, markers=(("images", ade20k_part.PART_FOLDER),))
    labels = ade20k_part.vocabulary()
    findings: list[Finding] = [*_strays(folder)]
    sources: list[Source] = []
    for split in splits:
        below = ade20k_part.SPLIT_FOLDERS[split]
        images = _files(folder / "images" / below, io.IMAGE_SUFFIXES, split, findings)
        parts = _files(folder / ade20k_part.PART_FOLDER / below, (".png",), split, findings)
        findings += _unmatched(split, images, parts, "part label")
        path = folder / f"ade20k_instance_{split}.json"
        annotated, sizes = _ade_instances(path, split, labels, findings)
        findings += _unmatched(split, images, annotated, f"entry in {path.name}")
        sources += [
            Source(
                split,
                stem,
                str(image),
                object_part=str(parts[stem]),
                bits=16,
                instances=tuple(annotated.get(stem, ())),
                size=sizes.get(stem),
            )
            for stem, image in images.items()
            if stem in parts
        ]
    expected = {"train": {"images": 7347}, "val": {"images": 1016}} if name == "ade20k_part_234" else {}
    return Layout(
        "ade20k_part_234", folder, labels, tuple(sources), tuple(findings), expected, parts_may_leave_objects=True
    )


def _ade_instances(
    path: Path, split: str, labels: Vocabulary, findings: list[Finding]
) -> tuple[dict[str, list[Instance]], dict[str, tuple[int, int]]]:
    try:
        data = coco.read_coco(path)
        stems = coco.coco_stems(data, path)
    except (ValueError, FileNotFoundError) as error:
        findings.append(
            finding(split, "unreadable instance file", [str(error)], changes_score=True, remedy="fetch it again")
        )
        return {}, {}
    found: dict[str, list[Instance]] = {stem: [] for stem in stems.values()}
    strange: list[str] = []
    skipped: dict[str, int] = {}
    for annotation in data["annotations"]:
        category, image_id = annotation["category_id"], annotation["image_id"]
        if image_id not in stems or not 0 <= category < labels.num_objects:
            strange.append(f"annotation {annotation.get('id')}: image {image_id}, category {category}")
            continue
        segmentation = coco.usable_segmentation(annotation, skipped)
        if segmentation is not None:
            found[stems[image_id]].append(Instance(category, segmentation))
    if strange:
        remedy = f"categories are 0..{labels.num_objects - 1}; the file belongs to another data set"
        findings.append(finding(split, "instance of no image or category", strange, changes_score=True, remedy=remedy))
    findings += _skipped(split, skipped)
    sizes = {stems[i["id"]]: (i["height"], i["width"]) for i in data["images"] if i.get("height") and i.get("width")}
    return found, sizes


def _partimagenet(name: str, root: str, splits: Sequence[str]) -> Layout:
    folder = io.resolve_root(root, names=partimagenet.FOLDER_NAMES, markers=partimagenet.LAYOUTS)
    labels = partimagenet.vocabulary()
    findings: list[Finding] = [*_strays(folder)]
    sources: list[Source] = []
    for split in splits:
        path = partimagenet.find_annotations(folder, split)
        data = coco.read_coco(path)
        selected = {
            image_id: stem
            for image_id, stem in coco.coco_stems(data, path).items()
            if partimagenet.synset_of(stem) in partimagenet.source().synsets
        }
        skipped: dict[str, int] = {}
        polygons = partimagenet.read_polygons(data, selected, labels, partimagenet.source(), skipped, path)
        images = _photos(folder, split, set(selected.values()), findings)
        wanted = dict.fromkeys(selected.values(), path)
        findings += _unmatched(split, wanted, images, "photo", one_way=True)
        foreign = skipped.pop("part_of_another_object", 0)
        if foreign:
            remedy = "category and synset of the file name disagree; compare with the original annotation file"
            findings.append(Finding(split, "part of another object", foreign, True, remedy))
        findings += _skipped(split, skipped)
        names = labels.label_objects
        for image in data["images"]:
            stem = selected.get(image["id"])
            if stem in images:
                sources.append(
                    Source(
                        split,
                        str(stem),
                        str(images[stem]),
                        polygons=tuple(polygons[image["id"]]),
                        object_label=names.index(partimagenet.source().synsets[partimagenet.synset_of(stem)][0]),
                        size=(image["height"], image["width"]) if image.get("height") and image.get("width") else None,
                    )
                )
    return Layout("partimagenet_40", folder, labels, tuple(sources), tuple(findings))


def _photos(root: Path, split: str, stems: Collection[str], findings: list[Finding]) -> dict[str, Path]:
    """Photos of PartImageNet by stem: flat, or in one folder per synset."""
    base = root / "images" / split if (root / "images" / split).is_dir() else root / split
    found = _files(base, io.IMAGE_SUFFIXES, split, findings)
    for wnid in sorted({partimagenet.synset_of(stem) for stem in stems}):
        if (base / wnid).is_dir():
            found.update(_files(base / wnid, io.IMAGE_SUFFIXES, split, findings))
    return found


def _files(folder: Path, suffixes: Sequence[str], split: str, findings: list[Finding]) -> dict[str, Path]:
    """Files by stem; a missing folder or two files of one name become findings."""
    if not folder.is_dir():
        findings.append(
            finding(split, "missing folder", [str(folder)], changes_score=True, remedy="unpack the data set again")
        )
        return {}
    found: dict[str, Path] = {}
    double: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            double.append(str(path))
        found.setdefault(path.stem, path)
    if double:
        remedy = "image names must be unique, remove one of each pair"
        findings.append(finding(split, "second file of one name", double, changes_score=True, remedy=remedy))
    return found


def _unmatched(
    split: str, images: Mapping[str, object], labels: Mapping[str, object], what: str, *, one_way: bool = False
) -> Iterator[Finding]:
    without = sorted(str(images[stem]) for stem in images if stem not in labels)
    if without:
        yield finding(split, f"image without {what}", without, changes_score=True, remedy="restore the missing files")
    orphans = sorted(
        f"{stem} ({labels[stem]})" if isinstance(labels[stem], Path) else stem for stem in labels if stem not in images
    )
    if orphans and not one_way:
        yield finding(split, f"{what} without image", orphans, changes_score=True, remedy="restore the missing photos")


def _skipped(split: str, skipped: Mapping[str, int]) -> Iterator[Finding]:
    remedy = "left out when loading; nothing to do"
    for kind, text in SKIPPED.items():
        if skipped.get(kind):
            yield Finding(split, text, skipped[kind], False, remedy)


def _strays(root: Path) -> Iterator[Finding]:
    strays = sorted(str(path) for path in root.rglob("*") if io.is_stray(path))
    if strays:
        remedy = "partseg skips them, other code crashes on them; they may be deleted"
        yield finding("all", "stray file", strays, changes_score=False, remedy=remedy)
