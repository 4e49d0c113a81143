"""Pascal-Part-116 in the layout of OV-PARTS: images/, annotations_detectron2_obj/ and annotations_detectron2_part/.

The toy data set is written in the same layout and read by the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from partseg.data import io
from partseg.data.dataset import Mapper, PartSegDataset, build, check_split
from partseg.structures import Record
from partseg.vocabulary import Vocabulary

FOLDER_NAMES = ("PascalPart116", "Pascal-Part-116")
PART_FOLDER = "annotations_detectron2_part"
OBJECT_FOLDER = "annotations_detectron2_obj"
LABEL_BITS = 8


def vocabulary() -> Vocabulary:
    """The 116 object-parts with the benchmark's unseen objects."""
    return Vocabulary.from_yaml(Path(__file__).parent / "vocabularies" / "pascal_part_116.yaml")


def pascal_part_116(
    root: str | Path,
    split: str,
    *,
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
    records = [
        Record(
            image_id=stem,
            file_name=str(path),
            object_part_file_name=str(parts[stem]),
            object_file_name=str(objects[stem]),
        )
        for stem, path in images.items()
    ]
    return build(
        records,
        label_vocabulary=vocabulary().with_unseen(unseen_objects),
        mapper=mapper,
        seed=seed,
        name=name,
        split=split,
        all_seen=all_seen,
    )
