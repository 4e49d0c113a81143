"""Photos as people have them: any file Pillow reads, any colour mode, any orientation; arrays and tensors too.

Used by prediction only. Data sets read their files with io.read_image, which gives the same pixels for plain photos
but ignores orientation tags, because label files ignore them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from partseg.data.io import is_stray

ImageLike = str | Path | Image.Image | np.ndarray | Tensor

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


class UnusableImageError(ValueError):
    """A picture that was understood but cannot be used; its message needs no further words."""


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
        return _read_file(Path(source), name=name, max_pixels=max_pixels)
    what = name or "image"
    if isinstance(source, Image.Image):
        _check_area(source.size, what, max_pixels)
        return _upright(source, name=what, what=what)
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
    return _upright(Image.fromarray(np.ascontiguousarray(source)), name=what, what=what)


def list_images(sources: str | Path | Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """(images, other files) that files, folders and globs name; folders in natural order, so that frame 9 precedes 10.

    A folder gives its own files whose suffix is in SUFFIXES; the rest of its files are returned as others. A file that
    is named twice comes once. FileNotFoundError when a source names nothing.
    """
    images: dict[Path, None] = {}
    others: dict[Path, None] = {}
    for source in [sources] if isinstance(sources, str | Path) else sources:
        path = Path(source).expanduser()
        if path.is_dir():
            files = [p for p in path.iterdir() if p.is_file() and not is_stray(p) and not p.name.startswith(".")]
            found = [p for p in files if p.suffix.lower() in SUFFIXES]
            others |= dict.fromkeys(sorted(set(files) - set(found), key=natural_key))
        elif path.exists():
            found = [path]
        elif has_magic(str(path)):
            matches = glob(str(path), recursive=True)  # noqa: PTH207  Path.glob takes no absolute patterns
            found = [p for p in map(Path, matches) if p.is_file()]
        else:
            raise FileNotFoundError(f"no file, folder or pattern {source}")
        if not found:
            raise FileNotFoundError(f"{source} holds no image ({' '.join(sorted(SUFFIXES))})")
        images |= dict.fromkeys(sorted(found, key=natural_key))
    return list(images), list(others)


def natural_key(path: str | Path) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which frame_9.png precedes frame_10.png."""
    words = re.split(r"([0-9]+)", str(path))
    return tuple((1, int(word), "") if word.isdecimal() else (0, 0, word.lower()) for word in words)


def unique_stems(paths: Iterable[Path]) -> dict[Path, str]:
    """A name for the files written for each path: its stem, with its suffix or a number added where stems repeat."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        choices = [path.stem, f"{path.stem}_{path.suffix[1:]}", f"{path.parent.name}_{path.stem}"]
        name = next((c for c in choices if c.lower() not in taken), None)
        number = 2
        while name is None or name.lower() in taken:
            name, number = f"{path.stem}_{number}", number + 1
        taken.add(name.lower())  # some file systems do not tell a.png from A.png
        names[path] = name
    return names


def _read_file(path: Path, *, name: str | None, max_pixels: int) -> Photo:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name an image, or use tools/predict.py for folders")
    try:
        with Image.open(path) as image:
            _check_area(image.size, str(path), max_pixels)
            return _upright(image, name=name or path.stem, what=str(path))
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


def _upright(image: Image.Image, *, name: str, what: str) -> Photo:
    notes: list[str] = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _STILL:
        notes.append(f"first of {frames} {'pages' if image.format == 'TIFF' else 'frames'}")
        image.seek(0)
    image.load()
    turned = ImageOps.exif_transpose(image)
    rgb, note = _to_rgb(turned, what)
    return Photo(rgb, name, (*notes, *([note] if note else [])))


def _to_rgb(image: Image.Image, what: str) -> tuple[Image.Image, str | None]:
    """(RGB copy or the image itself, note)."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, None
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image), image.mode, what)).convert("RGB"), None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            return image.convert("RGB"), None
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white.convert("RGB"), "transparent pixels shown as white"
    return image.convert("RGB"), None


def _to_8_bits(values: np.ndarray, mode: str, what: str) -> np.ndarray:
    """Grey levels above 8 bits: 0..65535 by 1/257, float 0..1 by 255; other ranges have no agreed meaning."""
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    top = 1.0 if mode == "F" else 65535.0
    if not (low >= 0 and high <= top):  # also refuses NaN
        raise UnusableImageError(
            f"{what}: grey levels run from {low:g} to {high:g}, expected 0..{top:g} in a {mode} picture; "
            "save it as 8 or 16 bit"
        )
    return np.rint(values * (255 / top)).astype(np.uint8)


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
    if width * height > max_pixels:
        raise UnusableImageError(
            f"{what} has {width} x {height} = {width * height / 1e6:.1f} megapixels, "
            f"allowed are {max_pixels / 1e6:g}; shrink it"
        )
