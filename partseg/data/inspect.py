"""Inspect a data set on disk: everything that would change a score, with file names; used by tools/inspect_data.py."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from partseg.data.inspect_image import UNREADABLE, WRONG_ID, WRONG_SIZE, ImageJob, ImageReport, check
from partseg.data.layout import Finding, Layout, finding, scan
from partseg.utils.parallel import parallel

SPLITS = ("train", "val")

_REMEDIES = {
    UNREADABLE: "the file is damaged; fetch it again",
    WRONG_SIZE: "photo and label are not of the same release; fetch both again",
    WRONG_ID: "the label belongs to another data set or numbering, or names= has to say what its values mean",
}


@dataclass(frozen=True)
class SplitCounts:
    """Totals of one split; `parts` and `objects` map a label id to (images, pixels)."""

    images: int
    pairs: int
    parts: Mapping[int, tuple[int, int]]
    objects: Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class Report:
    """What an inspection found; `layout` and `images` are kept for the contact sheet."""

    name: str
    layout: Layout
    splits: Mapping[str, SplitCounts]
    findings: tuple[Finding, ...]
    images: tuple[ImageReport, ...]

    @property
    def changes_score(self) -> bool:
        """Some finding would change a score."""
        return any(f.changes_score for f in self.findings)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON: counts by class name, published counts, all findings."""
        names = self.layout.names
        return {
            "dataset": self.name,
            "root": str(self.layout.root),
            "changes_score": self.changes_score,
            "splits": {
                split: {
                    "images": counts.images,
                    "published": dict(self.layout.expected.get(split, {})),
                    "image_part_pairs": counts.pairs,
                    "object_parts": _by_name(counts.parts, names.object_parts),
                    "objects": _by_name(counts.objects, names.label_objects),
                }
                for split, counts in self.splits.items()
            },
            "findings": [{**asdict(f), "names": list(f.names)} for f in self.findings],
        }


def inspect(
    name: str,
    root: str | Path | None = None,
    *,
    splits: Sequence[str] = SPLITS,
    processes: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """Read every file of catalog data set `name` at `root`; raises only when the root itself is not the data set.

    `settings` replace arguments of its YAML file (vocabulary, annotations, names).
    """
    layout = scan(name, root, splits, settings=settings)
    jobs = [ImageJob(s, record, layout.vocabulary) for s in splits for record in layout.records.get(s, ())]
    images: list[ImageReport] = []
    for _, result in parallel(check, jobs, processes=processes, title=f"inspecting {name}"):
        if isinstance(result, Exception):
            raise result
        images.append(result)
    images.sort(key=lambda image: (image.split, image.name))
    counts = {split: _counts([image for image in images if image.split == split]) for split in splits}
    findings = [*layout.findings]
    for split in splits:
        findings += _image_findings(split, [image for image in images if image.split == split], layout)
        findings += _count_findings(split, counts[split], layout)
    findings += _converted(layout.root)
    return Report(name, layout, counts, tuple(sorted(findings, key=lambda f: not f.changes_score)), tuple(images))


def _counts(images: Sequence[ImageReport]) -> SplitCounts:
    def total(level: str) -> dict[int, tuple[int, int]]:
        number: Counter[int] = Counter()
        pixels: Counter[int] = Counter()
        for image in images:
            number.update(getattr(image, level).keys())
            pixels.update(getattr(image, level))
        return {k: (number[k], pixels[k]) for k in sorted(number)}

    return SplitCounts(len(images), sum(len(image.parts) for image in images), total("parts"), total("objects"))


def _image_findings(split: str, images: Sequence[ImageReport], layout: Layout) -> Iterator[Finding]:
    problems: dict[str, list[str]] = defaultdict(list)
    for image in images:
        for kind, message in image.problems:
            problems[kind].append(message)
    for kind, messages in sorted(problems.items()):
        yield finding(split, kind, messages, changes_score=True, remedy=_REMEDIES[kind])
    empty = [image.name for image in images if not image.parts and not image.problems]
    if empty:
        yield finding(
            split, "image without a part pixel", empty, changes_score=False, remedy="it adds nothing to a score"
        )
    seen = layout.names.seen
    unseen = [i.name for i in images if i.parts and not i.problems and not any(seen[k] for k in i.parts)]
    if unseen and split == "train":
        remedy = (
            "trains background only, or nothing; augmentation.drop_without_parts=true (official) takes others instead"
        )
        yield finding(split, "image without a seen part", unseen, changes_score=False, remedy=remedy)
    for kind, attribute in (("part outside its object", "outside"), ("part in another object", "foreign")):
        found = [f"{i.name}: {getattr(i, attribute)} pixels" for i in images if getattr(i, attribute)]
        if found:
            remedy = "object-wise scores drop or misjudge these pixels"
            yield finding(split, kind, found, changes_score=not layout.parts_may_leave_objects, remedy=remedy)
    single = [f"{i.name}: {layout.names.object_parts[k]}" for i in images for k, n in i.parts.items() if n == 1]
    if single:
        yield finding(
            split, "class of one pixel in an image", single, changes_score=False, remedy="as in the originals"
        )


def _count_findings(split: str, counts: SplitCounts, layout: Layout) -> Iterator[Finding]:
    measured = {"images": counts.images, "(image, part) pairs": counts.pairs}
    for what, published in layout.expected.get(split, {}).items():
        if measured[what] != published:
            message = f"{measured[what]} {what}, published {published}"
            remedy = "the set is incomplete, larger, or converted again"
            yield finding(split, "count differs from the published one", [message], changes_score=True, remedy=remedy)
    names = layout.names.object_parts
    absent = [name for k, name in enumerate(names) if k not in counts.parts]
    if absent and counts.images:
        yield finding(split, "class without a pixel", absent, changes_score=False, remedy="it has no IoU in this split")
    tiny = [names[k] for k, (_, pixels) in counts.parts.items() if pixels == 1]
    if tiny:
        yield finding(
            split, "class of one pixel in the split", tiny, changes_score=False, remedy="its IoU is a coin toss"
        )


def _converted(root: Path) -> Iterator[Finding]:
    """A provenance file that says the labels are not the benchmark's."""
    path = root / "provenance.json"
    if not path.is_file():
        return
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        provenance = {}
    reason = provenance.get("not_comparable_because") if isinstance(provenance, dict) else None
    if reason:
        yield finding(
            "all", "labels not the benchmark's", [str(reason)], changes_score=True, remedy="see provenance.json"
        )
    if isinstance(provenance, dict) and provenance.get("complete") is False:
        yield finding(
            "all", "conversion not finished", [str(path)], changes_score=True, remedy="run the same command again"
        )


def _by_name(counts: Mapping[int, tuple[int, int]], names: Sequence[str]) -> dict[str, dict[str, int]]:
    zero = (0, 0)
    return {n: {"images": counts.get(k, zero)[0], "pixels": counts.get(k, zero)[1]} for k, n in enumerate(names)}
