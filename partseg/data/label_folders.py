"""Folders of photos, one per class, as ImageNet comes: what is in a photo is known, where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from partseg.data import io
from partseg.data.dataset import Mapper, PartSegDataset, build
from partseg.structures import Record
from partseg.vocabulary.words import as_vocabulary


def label_folders(
    root: str | Path,
    split: str = "train",
    *,
    vocabulary: str,
    folders: Mapping[str, str | Sequence[str]] | None = None,
    most: int | None = None,
    largest_side: int | None = None,
    mapper: Mapper | None = None,
    seed: int = 0,
    all_seen: bool = False,
    name: str = "label_folders",
) -> PartSegDataset:
    """Photos below `root`, which holds a folder per class: its name is an object of the vocabulary.

    `folders` maps an object to the folders that show it ({bird: [n01514668, ...]}); others are left out. `most` keeps
    the first photos of each folder by name, `largest_side` those whose sides are at most that many pixels; what is left
    out is counted in `skipped`. ValueError for folders that are no objects, FileNotFoundError for absent ones.
    """
    root, labels = Path(root).expanduser(), as_vocabulary(vocabulary)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; dataset.root must hold a folder of photos per class")
    if folders is None:
        folders = {path.name: path.name for path in sorted(root.iterdir()) if path.is_dir()}
    strange = sorted(set(folders) - set(labels.label_objects))
    if strange:
        raise ValueError(
            f"{root}: folders {strange[:5]} are no objects of vocabulary {labels.name!r}; map objects to folders with "
            "dataset.folders={bird: [n01514668, n01514859]}"
        )
    skipped = {"beyond_most": 0, "too_large": 0}
    records = []
    for owner, names in folders.items():
        label = labels.label_objects.index(owner)
        for folder in [names] if isinstance(names, str) else names:
            if not (root / folder).is_dir():
                raise FileNotFoundError(f"no folder {root / folder} for {owner!r} of dataset.folders")
            records += _records(root / folder, label, most, largest_side, skipped)
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


def _records(
    folder: Path, label: int, most: int | None, largest_side: int | None, skipped: dict[str, int]
) -> list[Record]:
    paths = sorted(io.files_by_stem(folder).items())
    kept = paths if most is None else paths[:most]
    skipped["beyond_most"] += len(paths) - len(kept)
    records = []
    for stem, path in kept:
        if largest_side is not None:
            with Image.open(path) as photo:
                if max(photo.size) > largest_side:
                    skipped["too_large"] += 1
                    continue
        records.append(Record(f"{folder.name}_{stem}", str(path), image_labels=(label,)))
    return records
