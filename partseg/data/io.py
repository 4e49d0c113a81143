"""Files to arrays: photos, 8- and 16-bit label PNGs, COCO segmentations, and the folders they lie in.

Training and evaluation read every pixel here. 255 in an 8-bit label file becomes IGNORE_LABEL here and only here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from partseg.labels import IGNORE_LABEL

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_STRAYS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX"})
_BITS_OF_MODE = {"L": 8, "P": 8, "I;16": 16, "I;16B": 16, "I": 16}  # older Pillow opens 16-bit grey PNGs as "I"
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


# Pixels ---------------------------------------------------------------------------------------------------------------
def read_image(path: str | Path) -> Image.Image:
    """A photo as RGB, decoded completely, its orientation tag not applied (see `upright`)."""
    image = _decode(path)
    return image if image.mode == "RGB" else image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The photo as its orientation tag wants it shown."""
    return ImageOps.exif_transpose(image)


def read_label(path: str | Path, *, bits: int | None) -> np.ndarray:
    """Ids of a label PNG as stored, uint8 or uint16 [h, w]; ValueError when the file does not have `bits` bits.

    None takes either depth.
    """
    image = _decode(path)
    found = _BITS_OF_MODE.get(image.mode)
    bits = bits or found or 8
    if found != bits:
        what = f"{found}-bit" if found else f"a {image.mode} picture"
        raise ValueError(
            f"label {path} is {what}, this data set stores {bits}-bit grey PNGs; "
            "write it again from the source instead of converting the picture (converting loses ids)"
        )
    return np.asarray(image).astype(np.uint8 if bits == 8 else np.uint16, copy=False)


def _decode(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no file {path}; the data set's index names it, restore it or build the set again"
        ) from None
    except _UNREADABLE as error:
        raise ValueError(
            f"cannot read {path}: {error}; the file is damaged or not a picture, fetch it again"
        ) from error
    return image


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
            "the file belongs to another data set or numbering"
        )
    return labels


# COCO segmentations ---------------------------------------------------------------------------------------------------
def repair_segmentation(segmentation: Any) -> tuple[Any, int]:
    """(segmentation without polygons that have no area, number of polygons left out); None when nothing is left.

    PartImageNet and ADE exports hold "polygons" of two or four numbers, which pycocotools refuses or reads as boxes.
    """
    if isinstance(segmentation, Mapping):
        return segmentation, 0
    polygons = list(segmentation or ())
    if polygons and all(isinstance(value, (int, float)) for value in polygons):
        polygons = [polygons]
    kept = [p for p in polygons if len(p) >= 6 and len(p) % 2 == 0 and np.isfinite(p).all() and _polygon_area(p) > 0]
    return (kept or None), len(polygons) - len(kept)


def _polygon_area(polygon: Sequence[float]) -> float:
    x, y = np.asarray(polygon[0::2], np.float64), np.asarray(polygon[1::2], np.float64)
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def usable_segmentation(annotation: Mapping[str, Any], skipped: dict[str, int]) -> Any:
    """The annotation's segmentation without broken polygons, or None; what is left out is counted in `skipped`."""
    reason = None
    segmentation, broken = repair_segmentation(annotation.get("segmentation"))
    skipped["broken_polygon"] = skipped.get("broken_polygon", 0) + broken
    if annotation.get("iscrowd"):
        reason = "crowd"
    elif annotation.get("area", 1) == 0:
        reason = "zero_area"
    elif segmentation is None:
        reason = "empty_annotation"
    if reason is not None:
        skipped[reason] = skipped.get(reason, 0) + 1
        return None
    return segmentation


def decode_mask(segmentation: Any, *, height: int, width: int, path: str | Path) -> np.ndarray:
    """bool [height, width], column-major, of polygons or a COCO RLE; `path` is for the error message only."""
    try:
        if isinstance(segmentation, Mapping):
            if list(segmentation["size"]) != [height, width]:
                raise ValueError(f"its RLE is {segmentation['size']}, the image is {[height, width]} (height, width)")
            counts = segmentation["counts"]
            rle = coco_mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
        else:
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        return coco_mask.decode(rle).view(bool)
    except Exception as error:  # pycocotools raises bare Exception for input that it does not know
        raise ValueError(f"an annotation of {path} cannot be read as a mask: {error}") from error


def read_json(path: str | Path) -> Any:
    """Parsed JSON; errors name the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again") from error


def read_coco(path: str | Path) -> dict[str, Any]:
    """A COCO file's dict; ValueError when it lacks images or annotations."""
    data = read_json(path)
    lacking = [key for key in ("images", "annotations") if not isinstance(data, dict) or key not in data]
    if lacking:
        raise ValueError(f"{path} is not a COCO file: it lacks {lacking}")
    return data


def coco_stems(data: Mapping[str, Any], path: str | Path) -> dict[Any, str]:
    """Image id -> file name without folder and suffix; ValueError when two images share either."""
    stems = {image["id"]: file_stem(image["file_name"]) for image in data["images"]}
    if len(stems) < len(data["images"]) or len(set(stems.values())) < len(stems):
        names = [file_stem(image["file_name"]) for image in data["images"]]
        repeated = sorted({name for name in names if names.count(name) > 1})[:3]
        raise ValueError(f"{path} lists images twice (same id or same name {repeated}); image names must be unique")
    return stems


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
