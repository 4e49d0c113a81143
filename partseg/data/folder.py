"""A folder of photos of your own: with label PNGs to train and evaluate on, or without, for exporting predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from PIL import Image

from partseg.data.coco_style import spellings
from partseg.data.dataset import Mapper, PartSegDataset, build, in_split
from partseg.data.images import list_images, unique_stems
from partseg.structures import Record
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.words import as_vocabulary

EMPTY = frozenset({"background", "none", "unlabelled", "unlabeled", "ignore", "void"})
"""Names of values that mean no part."""

LISTED = 10


def folder(
    root: str | Path,
    split: str = "all",
    *,
    vocabulary: str,
    names: str | None = None,
    val_share: float = 0.2,
    mapper: Mapper | None = None,
    seed: int = 0,
    name: str = "folder",
    all_seen: bool = False,
    unseen_objects: Sequence[str] | None = None,
) -> PartSegDataset:
    """Photos in `<root>/images` with a PNG of the same name each in `<root>/labels`, or all photos at `root`.

    Without `labels/` the root is a folder, a file or a glob, and the split does not matter. With it, photos and labels
    lie in `train/` and `val/` below both, or side by side; then `val_share` of them, by their names' hash, is val.
    `vocabulary` is a shipped name or a YAML file. Its order numbers the labels, unless `names` is a YAML file that maps
    each value in the PNGs (8 or 16 bit) to "dog:head", "dog head", "dog's head" or "background". Photos lie as their
    files have them, orientation tags not applied.
    """
    words = as_vocabulary(vocabulary).with_unseen(unseen_objects)
    base = Path(root).expanduser()
    if not (base / "labels").is_dir():
        if names is not None:
            raise FileNotFoundError(f"names={names} is for labels, and there is no folder {base / 'labels'}")
        paths, _ = list_images(str(root))
        stems = unique_stems(paths)
        records = [Record(stems[path], str(path)) for path in paths]
        return build(records, label_vocabulary=words, mapper=mapper, seed=seed, name=name, split="all")
    values, empty = (None, ()) if names is None else read_names(Path(names).expanduser(), words)
    return build(
        [_record(photo, label, values, empty) for photo, label in _pairs(base, split, val_share)],
        label_vocabulary=words,
        mapper=mapper,
        seed=seed,
        name=name,
        split=split,
        all_seen=all_seen,
    )


def read_names(path: Path, words: Vocabulary) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
    """(value of each object-part in the label PNGs, values that mean none) of a names file; ValueError if wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"no names file {path}; it maps each value of the label PNGs to a name")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, Mapping) or not all(type(value) is int and 0 <= value < 1 << 16 for value in content):
        raise ValueError(f'{path} must map values of the label PNGs to names, for example "1: dog:head", one per line')
    known = {each: i for i, pair in enumerate(words.pairs) for each in spellings(*pair)}
    labels = {value: str(name).strip() for value, name in content.items()}
    strange = [f"{value}: {name}" for value, name in labels.items() if name not in known and name.lower() not in EMPTY]
    if strange:
        raise ValueError(
            f"{path}: {strange[:3]} are no object-parts of vocabulary {words.name!r}; they are called like "
            f"{next(iter(known))!r}, or background"
        )
    found = {known[name]: value for value, name in labels.items() if name in known}
    if len(found) < sum(name in known for name in labels.values()):
        raise ValueError(f"{path} gives an object-part several values; give it one")
    empty = tuple(value for value, name in labels.items() if name not in known)
    return tuple(found.get(i) for i in range(len(words))), empty


def _pairs(base: Path, split: str, val_share: float) -> list[tuple[Path, Path]]:
    """(photo, label) of a split; ValueError names the first photos that have no label."""
    images, labels = base / "images", base / "labels"
    own = (images / split).is_dir()
    photos, _ = list_images(images / split if own else images)
    if not own:
        chosen = in_split([photo.name for photo in photos], split, val_share=val_share)
        photos = [photo for photo in photos if photo.name in chosen]
    pairs = [(photo, (labels / split if own else labels) / f"{photo.stem}.png") for photo in photos]
    missing = [str(label) for _, label in pairs if not label.is_file()]
    if missing:
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        raise FileNotFoundError(
            f"{len(missing)} of {len(pairs)} photos have no label: {', '.join(missing[:LISTED])}{more}. Add them (a "
            "PNG without a part is fine), or move the photos elsewhere"
        )
    return pairs


def _record(photo: Path, label: Path, values: tuple[int | None, ...] | None, empty: tuple[int, ...]) -> Record:
    try:
        with Image.open(label) as image:  # the header alone
            bits = 16 if image.mode.startswith("I") else 8
    except OSError:  # who reads the label says what is wrong with it
        bits = 8
    limit = 1 << bits
    return Record(
        photo.stem,
        str(photo),
        object_part_file_name=str(label),
        label_bits=bits,
        label_values=None if values is None else tuple(None if v is None or v >= limit else v for v in values),
        empty_values=tuple(value for value in empty if value < limit),
    )
