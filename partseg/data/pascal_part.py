"""Pascal-Part-116 in the layout of OV-PARTS: images/, annotations_detectron2_obj/ and annotations_detectron2_part/.

The toy data set is written in the same layout and read by the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from partseg.data import io, layout
from partseg.data.dataset import Mapper, PartSegDataset, build, check_split
from partseg.structures import Record
from partseg.vocabulary.shipped import shipped

FOLDER_NAMES = ("PascalPart116", "Pascal-Part-116")
PART_FOLDER = "annotations_detectron2_part"
OBJECT_FOLDER = "annotations_detectron2_obj"

PUBLISHED = {
    "train": {"images": 8431, "(image, part) pairs": 53067},
    "val": {"images": 850, "(image, part) pairs": 4957},
}


def pascal_part_116(
    root: str | Path,
    split: str,
    *,
    vocabulary: str = "pascal_part_116",
    mapper: Mapper | None = None,
    seed: int = 0,
    shots: int | None = None,
    all_seen: bool = False,
    unseen_objects: Sequence[str] | None = None,
    name: str = "pascal_part_116",
) -> PartSegDataset:
    """Split "train" or "val" of the data set at `root` (either spelling of the folder, or its parent).

    `shots` keeps the images of train_{shots}shot.json, `all_seen` hides no class in training, `unseen_objects` replaces
    the benchmark's split. Images without a label file and part labels without an image raise FileNotFoundError.
    """
    check_split(split)
    root = io.resolve_root(root, names=FOLDER_NAMES, markers=[("images", PART_FOLDER, OBJECT_FOLDER)])
    images = io.files_by_stem(root / "images" / split)
    io.require_photos(images, root / PART_FOLDER / split)
    if shots is not None and split == "train":
        images = io.keep_listed(images, root / f"train_{shots}shot.json")
    parts = io.match_labels(images, root / PART_FOLDER / split)
    objects = io.match_labels(images, root / OBJECT_FOLDER / split)
    records = [_record(stem, path, parts[stem], objects[stem]) for stem, path in images.items()]
    return build(
        records,
        label_vocabulary=shipped(vocabulary).with_unseen(unseen_objects),
        mapper=mapper,
        seed=seed,
        name=name,
        split=split,
        all_seen=all_seen,
    )


def scan(name: str, root: str, splits: Sequence[str], vocabulary: str) -> layout.Layout:
    """Everything at `root`, and what is missing or too many."""
    folder = io.resolve_root(root, names=FOLDER_NAMES, markers=[("images", PART_FOLDER, OBJECT_FOLDER)])
    findings = [*layout.strays(folder)]
    records: dict[str, tuple[Record, ...]] = {}
    for split in splits:
        images = layout.files(folder / "images" / split, io.IMAGE_SUFFIXES, split, findings)
        parts = layout.files(folder / PART_FOLDER / split, (".png",), split, findings)
        objects = layout.files(folder / OBJECT_FOLDER / split, (".png",), split, findings)
        findings += layout.unmatched(split, images, parts, "part label")
        findings += layout.unmatched(split, images, objects, "object label")
        complete = [stem for stem in images if stem in parts and stem in objects]
        records[split] = tuple(_record(stem, images[stem], parts[stem], objects[stem]) for stem in complete)
    expected = PUBLISHED if name == "pascal_part_116" else {}
    return layout.Layout(folder, vocabulary, records, tuple(findings), expected)


def _record(stem: str, image: Path, part: Path, objects: Path) -> Record:
    return Record(stem, str(image), object_part_file_name=str(part), object_file_name=str(objects))
