"""One's own COCO JSON as a data set that needs no settings: the file's words, photos beside it, a share for `val`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from partseg.data.coco_style import coco_style
from partseg.data.dataset import Mapper, PartSegDataset


def coco(
    json: str | Path,
    split: str,
    *,
    root: str | Path | None = None,
    vocabulary: str = "categories",
    val_share: float = 0.2,
    mapper: Mapper | None = None,
    seed: int = 0,
    all_seen: bool = False,
    unseen_objects: Sequence[str] | None = None,
    name: str = "coco",
) -> PartSegDataset:
    """Split of one's own COCO JSON with the photos beside it, in `images/` or `root`; see `coco_style` for the rest.

    ValueError for a file whose own categories name no part.
    """
    path = Path(json).expanduser().absolute()
    dataset = coco_style(
        photos_of(path, root),
        split,
        vocabulary=vocabulary,
        images=".",
        annotations=str(path),
        val_share=val_share,
        mapper=mapper,
        seed=seed,
        all_seen=all_seen,
        unseen_objects=unseen_objects,
        name=name,
    )
    if not len(dataset.label_vocabulary):
        raise ValueError(
            f'{json}: no category names a part. Call them "dog:head", or "head" with the supercategory "dog" beside a '
            'category "dog", or give vocabulary=<YAML file> with the objects and their parts'
        )
    return dataset


def photos_of(json: str | Path, root: str | Path | None) -> Path:
    """The folder of the photos of `coco`."""
    beside = Path(json).expanduser().parent
    if root is not None:
        return Path(root).expanduser()
    return beside / "images" if (beside / "images").is_dir() else beside
