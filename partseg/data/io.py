"""Files to arrays: photos, 8- and 16-bit label PNGs, and the folders they lie in.

Training and evaluation read every pixel here. 255 in an 8-bit label file becomes IGNORE_LABEL here and only here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from partseg.labels import IGNORE_LABEL
from partseg.structures import Record

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_STRAYS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX"})
_BITS_OF_MODE = {"L": 8, "P": 8, "I;16": 16, "I;16B": 16, "I": 16}  # older Pillow opens 16-bit grey PNGs as "I"
_FEW_BITS = {"1": "1-bit", "L;2": "2-bit", "L;4": "4-bit"}
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class UnusableImageError(ValueError):
    """A picture that was understood but cannot be used; its message needs no further words."""


# Pixels ---------------------------------------------------------------------------------------------------------------
def read_image(path: str | Path) -> Image.Image:
    """A photo as RGB, decoded completely, its orientation tag not applied (see `upright`)."""
    image = eight_bits(_decode(path)[0], what=str(path))
    return image if image.mode == "RGB" else image.convert("RGB")


def eight_bits(image: Image.Image, *, what: str) -> Image.Image:
    """The picture, its grey levels above 8 bits scaled (0..65535 by 1/257, float 0..1 by 255): Pillow would clip them.

    UnusableImageError for other ranges, which have no agreed meaning; `what` names the picture in it.
    """
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    top = 1.0 if image.mode == "F" else 65535.0
    if not (low >= 0 and high <= top):  # also refuses NaN
        raise UnusableImageError(
            f"{what}: grey levels run from {low:g} to {high:g}, expected 0..{top:g} in a {image.mode} picture; "
            "save it as 8 or 16 bit"
        )
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))


def upright(image: Image.Image) -> Image.Image:
    """The photo as its orientation tag wants it shown."""
    return ImageOps.exif_transpose(image)


def read_label(path: str | Path, *, bits: int | None) -> np.ndarray:
    """Ids of a label PNG as stored, uint8 or uint16 [h, w]; ValueError when the file does not have `bits` bits.

    None takes either depth.
    """
    image, stored = _decode(path)
    found = _BITS_OF_MODE.get(image.mode)
    bits = bits or found or 8
    if found != bits or stored in _FEW_BITS:
        what = _FEW_BITS.get(stored) or (f"{found}-bit" if found else f"a {image.mode} picture")
        raise ValueError(
            f"label {path} is {what}, this data set stores {bits}-bit grey PNGs; "
            "write it again from the source instead of converting the picture (converting loses ids)"
        )
    ids = np.asarray(image).astype(np.uint8 if bits == 8 else np.uint16, copy=False)
    if image.mode == "P":
        _refuse_renumbered(image, ids, path)
    return ids


def read_parts(record: Record) -> np.ndarray:
    """Object-part ids of a record's label PNG; ValueError for a value that the record's own numbering lacks."""
    assert record.object_part_file_name is not None
    stored = read_label(record.object_part_file_name, bits=record.label_bits)
    if record.label_values is None:
        return stored
    none = (1 << record.label_bits) - 1
    table = np.full(none + 1, -1, np.int64)
    table[[none, *record.empty_values]] = none
    for label, value in enumerate(record.label_values):
        if value is not None:
            table[value] = label
    ids = table[stored]
    if (ids < 0).any():
        raise ValueError(
            f"label {record.object_part_file_name} holds {np.unique(stored[ids < 0])[:8].tolist()}, which the names "
            "file does not name; add them (value: name, or value: background)"
        )
    return ids.astype(stored.dtype)


def _refuse_renumbered(image: Image.Image, ids: np.ndarray, path: str | Path) -> None:
    """ValueError where a palette of greys shows an id as another grey: tools that shrink PNGs renumber ids so."""
    colours = np.asarray(image.getpalette("RGB"), np.int64).reshape(-1, 3)
    if (colours != colours[:, :1]).any():  # a palette to look at, such as VOC's
        return
    used = np.flatnonzero(np.bincount(ids.ravel(), minlength=len(colours))[: len(colours)])
    other = used[colours[used, 0] != used]
    if other.size:
        raise ValueError(
            f"label {path} has a grey palette that shows id {other[0]} as {colours[other[0], 0]}; a tool that makes "
            "PNGs smaller has renumbered its ids: restore the original file, or write it again as plain grey"
        )


def check_regular(path: Path) -> None:
    """ValueError for a folder, pipe or device: reading one may never end."""
    if path.exists() and not path.is_file():
        raise UnusableImageError(f"{path} is a {'folder' if path.is_dir() else 'pipe or device'}, not a picture file")


def _decode(path: str | Path) -> tuple[Image.Image, str]:
    """(the picture, decoded; how its pixels are stored, such as "L;4" for 4-bit greys, which Pillow stretches)."""
    try:
        check_regular(Path(path))
        with Image.open(path) as image:
            stored = str(image.tile[0][3]) if image.tile else image.mode
            image.load()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no file {path}; the data set's index names it, restore it or build the set again"
        ) from None
    except UnusableImageError:
        raise
    except _UNREADABLE as error:
        raise ValueError(
            f"cannot read {path}: {error}; the file is damaged or not a picture, fetch it again"
        ) from error
    return image, stored


def file_table(lut: np.ndarray, num_ids: int, *, bits: int) -> np.ndarray:
    """int32 table over all ids of a `bits`-bit label file; the all-ones id means "none", ids >= `num_ids` become -1."""
    none = (1 << bits) - 1
    if num_ids > none:
        raise ValueError(f"{num_ids} classes do not fit in {bits}-bit labels")
    table = np.full(none + 1, -1, np.int32)
    table[:num_ids] = lut[:num_ids]
    table[none] = lut[IGNORE_LABEL]
    return table


def translate(ids: np.ndarray, table: np.ndarray, *, path: str | Path, what: str) -> np.ndarray:
    """int32 labels of `ids`; ValueError that names the file and the ids that `table` refuses."""
    labels = table.take(ids)
    if labels.size and labels.min() < 0:
        allowed = int((table[:-1] >= 0).sum()) - 1
        refused = np.unique(ids[labels < 0]).tolist()
        raise ValueError(
            f"label {path} holds {what} ids {refused[:8]}, allowed are 0..{allowed} and {len(table) - 1} for none; "
            "the file belongs to another data set or numbering, or dataset.names= has to say what its values mean"
        )
    return labels


# Names and lists ------------------------------------------------------------------------------------------------------
def read_json(path: str | Path) -> Any:
    """Parsed JSON; errors name the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again") from error


def file_stem(file_name: object) -> str:
    """File name without folders (of either slash) and suffix."""
    return Path(str(file_name).replace("\\", "/")).stem


# Folders --------------------------------------------------------------------------------------------------------------
def is_stray(path: Path) -> bool:
    """Left behind by an archiver or a file browser (`._x.png`, `.DS_Store`, `__MACOSX`), not part of a data set."""
    return path.name.startswith("._") or path.name in _STRAYS


def files_by_stem(folder: str | Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files of one folder keyed by name without suffix, sorted, strays left out; ValueError when two share a stem."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; see datasets/README.md for the layout that is expected")
    found: dict[str, Path] = {}
    wanted = tuple(suffixes)
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in wanted and not is_stray(p)):
        if path.stem in found:
            raise ValueError(
                f"{folder} holds {found[path.stem].name} and {path.name}: image names must be unique, remove one"
            )
        found[path.stem] = path
    return found


def require_photos(images: Mapping[str, Path], labels: str | Path) -> None:
    """FileNotFoundError when labels in the folder `labels` have no photo: dropped, they would change a score."""
    absent = sorted(set(files_by_stem(labels, (".png",))) - set(images))
    if images and absent:
        raise FileNotFoundError(
            f"{len(absent)} labels in {labels} have no photo, the first is {absent[0]}.png; restore the photos beside "
            f"{next(iter(images.values()))}, or remove the labels"
        )


def match_labels(images: Mapping[str, Path], folder: str | Path) -> dict[str, Path]:
    """The label PNG of every image, by stem; FileNotFoundError when some are missing or there is no image at all."""
    labels = files_by_stem(folder, (".png",))
    if not images:
        raise FileNotFoundError(f"no images for the labels in {folder}; the split is empty, check root and the archive")
    missing = [stem for stem in images if stem not in labels]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(images)} images have no label in {folder}, the first is {missing[0]}.png "
            f"(for {images[missing[0]]}); restore the labels or remove the images"
        )
    return labels


def keep_listed(images: Mapping[str, Path], list_file: Path) -> dict[str, Path]:
    """The images that a few-shot list `[{"file_name": ...}, ...]` names, by stem, in the order of `images`."""
    entries = read_json(list_file)
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) and "file_name" in e for e in entries):
        raise ValueError(f'{list_file} must be a list of {{"file_name": ...}}')
    wanted = {file_stem(entry["file_name"]) for entry in entries}
    missing = sorted(wanted - set(images))
    if missing or not wanted:
        what = f"names {len(missing)} images that are not there, the first is {missing[0]}" if missing else "is empty"
        raise ValueError(f"{list_file} {what}; the list and the images must come from the same data set")
    return {stem: path for stem, path in images.items() if stem in wanted}


def resolve_root(root: str | Path, *, names: Sequence[str], markers: Sequence[Collection[str]]) -> Path:
    """The data set's folder: `root`, a child of it, or a sibling under another of its known spellings `names`.

    `markers` are layouts: sets of sub-folders or files, of which the data set's folder must hold one. Raises
    FileNotFoundError that names the right folder when `root` is one level off in another way.
    """
    root = Path(root).expanduser()

    def holds(folder: Path) -> bool:
        return folder.is_dir() and any(all((folder / m).exists() for m in layout) for layout in markers)

    candidates = [root, *(root / name for name in names)]
    if root.name in names:
        candidates += [root.parent / name for name in names]
    for folder in candidates:
        if holds(folder):
            return folder
    wanted = "a folder that holds " + ", or ".join(" and ".join(sorted(layout)) for layout in markers)
    children = sorted(p for p in root.iterdir() if p.is_dir() and not is_stray(p)) if root.is_dir() else []
    nearby = [root.parent, root.parent.parent, *children, *(c / name for c in children for name in names)]
    for folder in nearby:
        if holds(folder):
            raise FileNotFoundError(f"root={root} is the wrong level: expected {wanted}; set root={folder}")
    if not root.exists():
        raise FileNotFoundError(
            f"root={root} does not exist; set root (or data_root) to {wanted}, usually named {' or '.join(names)}"
        )
    inside = sorted(path.name for path in root.iterdir() if not is_stray(path))[:8]
    raise FileNotFoundError(f"root={root} is not this data set: expected {wanted}; it holds {inside}")
