"""Pictures of label maps: overlays, legends and contact sheets, with nothing but PIL and numpy.

A class keeps its colour in every picture of a vocabulary, and mostly beyond, because the colour is a hash of its name.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from partseg.utils.files import write_atomic

_SALT = "partseg-1901"
"""Chosen by search so that no two parts of one object of the three shipped vocabularies get colours that look alike."""

_TONES = ((0.90, 1.00), (0.55, 1.00), (0.95, 0.62), (0.50, 0.75))
"""(saturation, value) of the four tones; hue alone gives about twelve colours that people tell apart."""

DISTINCT, TRIES = 15.0, 100
"""dE from which people tell two colours in different places apart without effort, and colours that are tried."""

MOST_APART = 60
"""Classes that are kept apart; a thousand free words cannot be, and trying takes seconds."""

COARSE = 200
"""Pixels of a label map's longer side in which places for names are looked for."""

_SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_PAPER = 255
_INK = (25, 25, 25)
_WARNING = (170, 30, 20)


def color_of(name: str) -> tuple[int, int, int]:
    """RGB 0..255 of a class name: the same name gives the same colour everywhere."""
    digest = hashlib.sha256((_SALT + name).encode()).digest()
    hue = int.from_bytes(digest[:4], "big") / 2**32
    saturation, value = _TONES[digest[4] % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


@lru_cache(maxsize=16)
def palette(names: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    """RGB of each class: that of its name, unless it looks like an earlier part of the same object.

    Parts of one object ("dog's head", "dog's tail"), and words without an object, are DISTINCT apart in CIELAB; where
    an object has more parts than colours are, the farthest of TRIES is taken.
    """
    taken: dict[str, list[NDArray[np.float64]]] = {}
    colors = []
    for name in names:
        others = taken.setdefault(name.rpartition("'s ")[0], [])
        best, distance = color_of(name), -1.0
        for attempt in range(TRIES if len(others) < MOST_APART else 1):
            color = color_of(f"{name}#{attempt}" if attempt else name)
            nearest = float(np.linalg.norm(np.array(others) - lab(color), axis=1).min()) if others else np.inf
            if nearest > distance:
                best, distance = color, nearest
            if distance >= DISTINCT:
                break
        others.append(lab(best))
        colors.append(best)
    return tuple(colors)


def lab(color: tuple[int, int, int]) -> NDArray[np.float64]:
    """CIELAB (D65) of an sRGB colour; distances in it are CIE76's dE."""
    scaled = np.array(color) / 255
    linear = np.where(scaled > 0.04045, ((scaled + 0.055) / 1.055) ** 2.4, scaled / 12.92)
    xyz = _SRGB_TO_XYZ @ linear / _SRGB_TO_XYZ.sum(1)
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    names: Sequence[str],
    *,
    alpha: float = 0.55,
    outline: bool = True,
) -> NDArray[np.uint8]:
    """The image [H, W, 3] with the label map [H, W] blended over it; ids >= len(names) are left untouched.

    `outline` draws a one-pixel line in the class colour, darkened, where a class meets anything else.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels are {list(labels.shape)} but the image is {list(image.shape[:2])}; resize the image")
    shown = (labels >= 0) & (labels < len(names))
    if not shown.any():
        return image.copy()
    table = np.array(palette(tuple(names)), np.float32)
    colors = table[np.where(shown, labels, 0)]
    blended = np.where(shown[..., None], (1 - alpha) * image + alpha * colors, image)
    if outline:
        edge = shown & _borders(np.where(shown, labels, -1))
        blended[edge] = 0.6 * colors[edge]
    return np.clip(np.rint(blended), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Spot:
    """Where a class is widest: `row` and `column` of a pixel and the pixels from it to the class's edge."""

    row: int
    column: int
    radius: int


def spots(labels: NDArray[np.integer], num_classes: int) -> dict[int, Spot]:
    """The widest place of each class, largest class first; coarse in large maps, and thin classes have none."""
    step = -(-max(labels.shape) // COARSE)
    small = labels[::step, ::step]
    counts = np.bincount(small[(small >= 0) & (small < num_classes)].ravel(), minlength=1)
    found = {}
    for label in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist():
        inside, depth = np.pad(small == label, 1), 0
        kept = inside
        while inside.any():
            kept, depth = inside, depth + 1
            inside = _eroded(inside)
        rows, columns = np.nonzero(kept)
        middle = len(rows) // 2
        if depth > 1:
            found[label] = Spot((rows[middle] - 1) * step, (columns[middle] - 1) * step, (depth - 1) * step)
    return found


def named(
    picture: NDArray[np.uint8], labels: NDArray[np.integer], names: Sequence[str], *, font_size: int | None = None
) -> NDArray[np.uint8]:
    """The picture with the part's name ("head" of "dog's head") written where each class is widest.

    A name that finds no room, or would cover a larger class's, is left out: the legend has it.
    """
    size = font_size or max(11, max(labels.shape) // 60)
    font, sheet = _font(size), Image.fromarray(picture)
    draw = ImageDraw.Draw(sheet)
    taken: list[tuple[float, float, float, float]] = []
    for label, spot in spots(labels, len(names)).items():
        text = short(names[label])
        box = draw.textbbox((spot.column, spot.row), text, font=font, anchor="mm")
        room = box[3] - box[1] <= 2 * spot.radius + size // 2 and box[0] >= 0 and box[2] <= picture.shape[1]
        if room and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            taken.append(box)
            draw.text(
                (spot.column, spot.row), text, fill="white", font=font, anchor="mm", stroke_width=2, stroke_fill=_INK
            )
    return np.asarray(sheet)


def short(name: str) -> str:
    """The part alone: "head" of "dog's head"."""
    return name.rpartition("'s ")[2]


def legend(
    names: Sequence[str],
    *,
    columns: int = 1,
    font_size: int = 13,
    width: int | None = None,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> NDArray[np.uint8]:
    """Colour swatches with names on white, [h, w, 3], column by column; `width` in pixels pads the picture.

    `colors` are those of the picture where the names are some of its classes.
    """
    colors = palette(tuple(names)) if colors is None else colors
    if not names:
        return np.full((font_size, width or 1, 3), _PAPER, np.uint8)
    font = _font(font_size)
    row = font_size + 6
    rows = -(-len(names) // columns)
    column_width = row + 12 + max(int(font.getlength(name)) for name in names)
    picture = Image.new("RGB", (max(columns * column_width, width or 0), rows * row + 6), "white")
    draw = ImageDraw.Draw(picture)
    for index, name in enumerate(names):
        x, y = (index // rows) * column_width + 4, (index % rows) * row + 4
        draw.rectangle((x, y, x + font_size, y + font_size), fill=colors[index], outline=_INK)
        draw.text((x + font_size + 6, y + font_size / 2), name, fill=_INK, font=font, anchor="lm")
    return np.asarray(picture)


def tile(
    images: Sequence[NDArray[np.uint8]],
    *,
    columns: int,
    captions: Sequence[str] | None = None,
    gap: int = 6,
    font_size: int = 12,
) -> NDArray[np.uint8]:
    """Images of any size on a white sheet, row by row, each cell as large as the largest image; captions below."""
    if not images:
        raise ValueError("tile got no images")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images; give one each")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    line = font_size + 5 if captions is not None else 0
    cell_height = max(image.shape[0] for image in images) + line + gap
    cell_width = max(image.shape[1] for image in images) + gap
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap), "white")
    draw, font = ImageDraw.Draw(sheet), _font(font_size)
    for index, image in enumerate(images):
        x, y = gap + (index % columns) * cell_width, gap + (index // columns) * cell_height
        sheet.paste(Image.fromarray(image), (x, y))
        if captions is not None:
            text = _shortened(captions[index], font, cell_width - gap)
            draw.text((x, y + image.shape[0] + 1), text, fill=_INK, font=font)
    return np.asarray(sheet)


def captioned(picture: NDArray[np.uint8], text: str, *, font_size: int = 14) -> NDArray[np.uint8]:
    """The picture with a line of text below it, broken where it is wider than the picture."""
    font, width = _font(font_size), max(picture.shape[1], 160)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if font.getlength(longer) <= width - 8 or not lines[-1] else [lines[-1], word]
    row = font_size + 5
    sheet = Image.new("RGB", (width, picture.shape[0] + row * len(lines) + 4), "white")
    sheet.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        draw.text((4, picture.shape[0] + 2 + index * row), line, fill=_WARNING, font=font)
    return np.asarray(sheet)


def png_bytes(array: NDArray[np.uint8]) -> bytes:
    """The picture as a PNG file's content."""
    data = io.BytesIO()
    Image.fromarray(array).save(data, format="PNG")
    return data.getvalue()


def save_png(array: NDArray[np.uint8], path: str | os.PathLike[str]) -> Path:
    """Write the picture, whole or not at all; makes the folder. Returns the path."""
    path = Path(path)
    write_atomic(path, png_bytes(array))
    return path


def _borders(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels whose right, left, lower or upper neighbour has another label."""
    edge = np.zeros(labels.shape, bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose four neighbours are inside, too; the outermost are not."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return inner


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
