"""What lies on disk, without raising: every image with its labels, and what is missing or too many in each split.

A data set's module may have a function `scan(name, root, splits, vocabulary)`, which lists all problems of its own
layout where its loader refuses the first; data sets without one are listed by their loader.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from partseg.data import catalog, io
from partseg.data.coco_file import photos_of
from partseg.structures import Record
from partseg.utils.config import instantiate
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.words import named

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
class Layout:
    """All that is to be checked, and what the search itself found; `expected` maps a split to its published counts.

    `records` are by split. `vocabulary` numbers the labels: a shipped one, a YAML file, or the one of the labels.
    """

    root: Path
    vocabulary: str | Vocabulary
    records: Mapping[str, tuple[Record, ...]]
    findings: tuple[Finding, ...]
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    parts_may_leave_objects: bool = False
    """ADE20K's own labels have parts outside their instance; elsewhere there is none."""

    @property
    def names(self) -> Vocabulary:
        """The vocabulary that numbers the labels."""
        return named(self.vocabulary) if isinstance(self.vocabulary, str) else self.vocabulary


def finding(split: str, kind: str, names: Sequence[str], *, changes_score: bool, remedy: str) -> Finding:
    """A finding about named files."""
    return Finding(split, kind, len(names), changes_score, remedy, tuple(names[:KEPT_NAMES]))


def scan(
    name: str, root: str | Path | None, splits: Sequence[str], *, settings: Mapping[str, Any] | None = None
) -> Layout:
    """The layout of catalog data set `name` at `root` (None: the catalog's own folder under `data`).

    `settings` are arguments of its builder (vocabulary, annotations, names) that replace those of its YAML.
    """
    node = catalog.node(name, root=root)
    node.update(settings or {})
    for key, what in (("root", "its folder"), ("json", "the file of its labels")):
        if OmegaConf.is_missing(node, key):
            raise ValueError(f"data set {name!r} needs {key}=<{what}>")
    module = importlib.import_module(str(node._target_).rpartition(".")[0])
    if hasattr(module, "scan"):
        found: Layout = module.scan(name, str(node.root), splits, str(node.vocabulary))
        return found
    datasets = {split: instantiate(node, split=split) for split in splits}
    skips = [f for split, dataset in datasets.items() for f in skipped(split, dataset.skipped)]
    records = {split: dataset.records for split, dataset in datasets.items()}
    place = photos_of(node.json, node.root) if "json" in node else Path(node.root)
    words: str | Vocabulary = str(node.vocabulary)
    if words == "categories":
        words = datasets[splits[0]].label_vocabulary
    return Layout(place, words, records, (*strays(place), *skips))


def files(folder: Path, suffixes: Sequence[str], split: str, findings: list[Finding]) -> dict[str, Path]:
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


def unmatched(
    split: str, images: Mapping[str, object], labels: Mapping[str, object], what: str, *, one_way: bool = False
) -> Iterator[Finding]:
    """Images without a label of some kind and, unless `one_way`, labels without an image."""
    without = sorted(str(images[stem]) for stem in images if stem not in labels)
    if without:
        yield finding(split, f"image without {what}", without, changes_score=True, remedy="restore the missing files")
    orphans = sorted(
        f"{stem} ({labels[stem]})" if isinstance(labels[stem], Path) else stem for stem in labels if stem not in images
    )
    if orphans and not one_way:
        yield finding(split, f"{what} without image", orphans, changes_score=True, remedy="restore the missing photos")


def skipped(split: str, counts: Mapping[str, int]) -> Iterator[Finding]:
    """What a loader left out, as findings."""
    remedy = "left out when loading; nothing to do"
    for kind, text in SKIPPED.items():
        if counts.get(kind):
            yield Finding(split, text, counts[kind], False, remedy)


def strays(root: Path) -> Iterator[Finding]:
    """Files that an archiver or a file browser left behind."""
    found = sorted(str(path) for path in root.rglob("*") if io.is_stray(path))
    if found:
        remedy = "partseg skips them, other code crashes on them; they may be deleted"
        yield finding("all", "stray file", found, changes_score=False, remedy=remedy)
