"""A folder of photos without labels, for exporting predictions and for training on them."""

from __future__ import annotations

from pathlib import Path

from partseg.data.dataset import Mapper, PartSegDataset, build
from partseg.data.images import list_images, unique_stems
from partseg.structures import Record
from partseg.vocabulary.words import as_vocabulary


def folder(
    root: str | Path,
    split: str = "all",
    *,
    vocabulary: str,
    mapper: Mapper | None = None,
    seed: int = 0,
    name: str = "folder",
) -> PartSegDataset:
    """All photos at `root` (a folder, a file or a glob), whatever the split is called.

    `vocabulary` says which words they are looked at with: a shipped name or a YAML file. Photos lie as their files have
    them, orientation tags not applied.
    """
    paths, _ = list_images(str(root))
    stems = unique_stems(paths)
    return build(
        [Record(stems[path], str(path)) for path in paths],
        label_vocabulary=as_vocabulary(vocabulary),
        mapper=mapper,
        seed=seed,
        name=name,
        split="all",
    )
