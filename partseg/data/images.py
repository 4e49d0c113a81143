"""Photos as people have them: any file Pillow reads, any colour mode, any orientation; arrays and tensors too.

Used by prediction only. Data sets read their files with io.read_image, which gives the same pixels for plain photos
and deep greys but ignores orientation tags, because label files ignore them.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import chain, count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from partseg.data.io import UnusableImageError, check_regular, eight_bits, is_stray

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
UsedT = TypeVar("UsedT")

MAX_PIXELS = 89_000_000
"""Largest area that is decoded, just below the size at which Pillow starts to warn of decompression bombs."""

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jp2"]
    + [".ppm", ".pgm", ".pnm", ".tga"]
)
"""What is taken from a folder; a file that is named itself is tried whatever it is called."""

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, MemoryError)
_STILL = frozenset({"MPO"})
"""Formats whose extra frames are previews or the other eye, not an animation."""


@dataclass(frozen=True)
class Photo:
    """An upright RGB picture; `notes` say what a user should know of how it was read (first frame, transparency)."""

    image: Image.Image
    name: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.height, self.image.width


def read_photo(source: ImageLike, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Photo:
    """The picture of a path, PIL image, uint8 array [h, w, 3] (or [h, w] grey, [h, w, 4] RGBA) or tensor [3, h, w].

    Orientation tags are applied, transparency is laid over white, 16-bit greys are scaled by 1/257, an animation gives
    its first frame. Tensors are uint8, or float in 0..1. ValueError or FileNotFoundError say what is wrong.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        return _open(path, lambda image: _to_photo(image, name=name or path.stem, what=str(path)), max_pixels)
    what = name or "image"
    if isinstance(source, Image.Image):
        _check_area(source.size, what, max_pixels)
        return _to_photo(source, name=what, what=what)
    if isinstance(source, Tensor):
        source = _array_of(source)
    if not isinstance(source, np.ndarray):
        raise ValueError(f"{what}: expected a path, a PIL image, an array or a tensor, got {type(source).__name__}")
    if source.dtype != np.uint8:
        raise ValueError(f"{what}: arrays must be uint8 in 0..255, got {source.dtype}; convert it first")
    if source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] not in (3, 4)) or 0 in source.shape:
        hint = "; channels-first data goes in as a torch tensor" if source.shape[:1] == (3,) else ""
        raise ValueError(f"{what}: arrays must be [h, w, 3], [h, w, 4] or [h, w], got {list(source.shape)}{hint}")
    _check_area((source.shape[1], source.shape[0]), what, max_pixels)
    return _to_photo(Image.fromarray(np.ascontiguousarray(source)), name=what, what=what)


def read_mask(source: str | Path | Image.Image) -> Bool[np.ndarray, "h w"]:
    """Where a picture is neither black nor transparent, upright; its values count as they are stored."""
    return _to_mask(source) if isinstance(source, Image.Image) else _open(Path(source), _to_mask, MAX_PIXELS)


def list_images(sources: str | Path | Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """(images, other files) that files, folders and globs name; folders in natural order, so that frame 9 precedes 10.

    A folder gives its own files whose suffix is in SUFFIXES; the rest of its files are returned as others. A file that
    is named twice comes once, whatever links lead to its folder. FileNotFoundError when a source names nothing.
    """
    images: dict[str, Path] = {}
    others: dict[str, Path] = {}
    for source in [sources] if isinstance(sources, str | Path) else sources:
        path = Path(source).expanduser()
        if path.is_dir():
            files = [p for p in path.iterdir() if not p.is_dir() and not is_stray(p) and not p.name.startswith(".")]
            found = [p for p in files if p.suffix.lower() in SUFFIXES]
            others |= {_place(p): p for p in sorted(set(files) - set(found), key=natural_key)}
        elif path.exists():
            found = [path]
        elif has_magic(str(path)):
            matches = glob(str(path), recursive=True)  # noqa: PTH207  Path.glob takes no absolute patterns
            found = [p for p in map(Path, matches) if not p.is_dir()]
        else:
            raise FileNotFoundError(f"no file, folder or pattern {source}")
        if not found:
            raise FileNotFoundError(f"{source} holds no image ({' '.join(sorted(SUFFIXES))})")
        for each in sorted(found, key=natural_key):
            images.setdefault(_place(each), each)
    return list(images.values()), list(others.values())


def _place(path: Path) -> str:
    """The file's name in its true folder: `**` follows links, and may go round in them."""
    return os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118


def natural_key(path: str | Path) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which frame_9.png precedes frame_10.png."""
    words = re.split(r"([0-9]+)", str(path))
    return tuple((1, int(word), "") if word.isdecimal() else (0, 0, word.lower()) for word in words)


def unique_stems(
    paths: Iterable[Path], *, endings: Sequence[str] = ("",), taken: Iterable[str] = ()
) -> dict[Path, str]:
    """A name for the files written for each path: its stem, with its suffix or a number added where files would meet.

    A name stands for one file per ending. No two files, and none of `taken`, get names that some file system holds for
    one: a.png and A.png, or an accent written in two ways.
    """
    names: dict[Path, str] = {}
    used = {_folded(name) for name in taken}
    for path in paths:
        choices = chain(
            [path.stem, f"{path.stem}_{path.suffix[1:]}", f"{path.parent.name}_{path.stem}"],
            (f"{path.stem}_{number}" for number in count(2)),
        )
        for name in choices:
            files = {_folded(name + ending) for ending in endings}
            if not files & used:
                break
        used |= files
        names[path] = name
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _open(path: Path, use: Callable[[Image.Image], UsedT], max_pixels: int) -> UsedT:
    """What `use` makes of the picture in a file; errors name the file."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name an image, or use partseg predict for folders")
    try:
        check_regular(path)
        with Image.open(path) as image:
            _check_area(image.size, str(path), max_pixels)
            return use(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {path}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image that Pillow reads; convert it to JPEG or PNG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{path} is larger than the {max_pixels / 1e6:.0f} megapixels allowed; shrink it") from None
    except UnusableImageError:
        raise
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read, it is damaged or cut off: {error}") from error


def _to_photo(image: Image.Image, *, name: str, what: str) -> Photo:
    turned, notes = _upright(image)
    rgb, note = _to_rgb(turned, what)
    return Photo(rgb, name, (*notes, *([note] if note else [])))


def _to_mask(image: Image.Image) -> np.ndarray:
    turned, _ = _upright(image)
    if turned.mode in ("1", "L", "F") or turned.mode.startswith("I"):
        return np.asarray(turned) != 0
    colours = np.asarray(turned.convert("RGBA" if turned.has_transparency_data else "RGB"))
    return np.logical_and(colours[..., :3].any(-1), colours[..., 3:].all(-1))


def _upright(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """(first frame, as its orientation tag wants it shown; a note where there are others)."""
    notes: list[str] = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _STILL:
        notes.append(f"first of {frames} {'pages' if image.format == 'TIFF' else 'frames'}")
        image.seek(0)
    image.load()
    return ImageOps.exif_transpose(image), notes


def _to_rgb(image: Image.Image, what: str) -> tuple[Image.Image, str | None]:
    """(RGB copy or the image itself, note)."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, None
    image = eight_bits(image, what=what)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            return image.convert("RGB"), None
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white.convert("RGB"), "transparent pixels shown as white"
    return image.convert("RGB"), None


def _array_of(tensor: Tensor) -> np.ndarray:
    """uint8 [h, w, 3] of a tensor [3, h, w] (grey [1, h, w] is repeated)."""
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or 0 in tensor.shape:
        raise ValueError(f"tensors must be [3, h, w], got {list(tensor.shape)}; pass a batch as a list of images")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        low, high = tensor.min().item(), tensor.max().item()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"float tensors must lie in 0..1, got {low:g}..{high:g}; use uint8 for 0..255")
        tensor = (tensor * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise ValueError(f"tensors must be uint8 in 0..255 or float in 0..1, got {tensor.dtype}")
    return tensor.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _check_area(size: tuple[int, int], what: str, max_pixels: int) -> None:
    width, height = size
    if not width * height:
        raise UnusableImageError(f"{what} has no pixels, it is {width} x {height}")
    if width * height > max_pixels:
        raise UnusableImageError(
            f"{what} has {width} x {height} = {width * height / 1e6:.1f} megapixels, "
            f"allowed are {max_pixels / 1e6:g}; shrink it"
        )
