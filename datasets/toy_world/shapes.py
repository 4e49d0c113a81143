"""What the toy's objects are made of: polygons with a part name and a paint, and the canvas that rasterises them.

Objects are drawn in their own frame (x right, y down, facing right, standing on y = 0) and placed by one affine map.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Color = tuple[float, float, float]
Points = NDArray[np.float64]
Pattern = Literal["plain", "stripes", "patches", "wool", "grain"]

NO_LABEL = 255
"""What the label files of Pascal-Part-116 hold where nothing is annotated."""

_SUPERSAMPLE = 2


@dataclass(frozen=True)
class Paint:
    """Colour of a surface, and a second colour laid over it as a pattern of the given period in pixels."""

    color: Color
    pattern: Pattern = "plain"
    accent: Color = (0.0, 0.0, 0.0)
    period: float = 8.0
    angle: float = 0.0


@dataclass(frozen=True)
class Shape:
    """One painted polygon. `part` None: belongs to the object but to none of its parts (a bicycle's frame).

    `opacity` below one lets the background through (between the spokes); the label covers the polygon all the same.
    """

    points: Points
    paint: Paint
    part: str | None = None
    opacity: float = 1.0
    edge: float = 0.35
    """How dark the line around the polygon is, 0..1."""


# ---- outlines ------------------------------------------------------------------------------------------------------
def ellipse(x: float, y: float, rx: float, ry: float, *, angle: float = 0.0, steps: int = 26) -> Points:
    """Closed outline of an ellipse turned by `angle` radians."""
    turn = np.linspace(0, 2 * math.pi, steps, endpoint=False)
    return rotated(np.stack([rx * np.cos(turn), ry * np.sin(turn)], 1), angle) + (x, y)


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    """An upright rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def rounded(x0: float, y0: float, x1: float, y1: float, *, power: float = 4.0, steps: int = 32) -> Points:
    """A superellipse that fills the rectangle: `power` 2 is an ellipse, large is a box."""
    turn = np.linspace(0, 2 * math.pi, steps, endpoint=False)
    cos, sin = np.cos(turn), np.sin(turn)
    x = np.sign(cos) * np.abs(cos) ** (2 / power) * (x1 - x0) / 2 + (x0 + x1) / 2
    y = np.sign(sin) * np.abs(sin) ** (2 / power) * (y1 - y0) / 2 + (y0 + y1) / 2
    return np.stack([x, y], 1)


def polygon(*points: tuple[float, float]) -> Points:
    """The points as given."""
    return np.array(points, np.float64)


def strip(points: Sequence[tuple[float, float]], widths: Sequence[float] | Points) -> Points:
    """A band along the polyline, `widths` wide at its points, with round ends."""
    line, half = np.array(points, np.float64), np.array(widths, np.float64) / 2
    tangent = np.gradient(line, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    sides = line + normal * half[:, None], line - normal * half[:, None]
    arc = np.linspace(math.pi / 2, -math.pi / 2, 7)[1:-1, None]
    head = line[-1] + half[-1] * (np.cos(arc) * tangent[-1] + np.sin(arc) * normal[-1])
    tail = line[0] - half[0] * (np.cos(arc) * tangent[0] + np.sin(arc) * normal[0])
    return np.concatenate([sides[0], head, sides[1][::-1], tail])


def limb(start: tuple[float, float], end: tuple[float, float], width: float, end_width: float | None = None) -> Points:
    """A straight tapered band."""
    return strip([start, end], [width, width if end_width is None else end_width])


def arc_line(start: tuple[float, float], angle: float, length: float, *, bend: float) -> list[tuple[float, float]]:
    """A polyline of six points that leaves `start` at `angle` (radians, y down) and turns by `bend` in all."""
    points, heading = [start], angle
    for _ in range(5):
        x, y = points[-1]
        points.append((x + math.cos(heading) * length / 5, y + math.sin(heading) * length / 5))
        heading += bend / 5
    return points


def cloud(x: float, y: float, rx: float, ry: float, rng: np.random.Generator, *, bumps: int = 11) -> Points:
    """An ellipse with a bumpy outline: wool, bushes, tree tops."""
    turn = np.linspace(0, 2 * math.pi, bumps * 6, endpoint=False)
    radius = 0.92 + 0.09 * np.abs(np.sin(turn * bumps / 2 + rng.uniform(0, math.pi)))
    radius += 0.04 * np.sin(turn * 3 + rng.uniform(0, 2 * math.pi))
    return np.stack([rx * radius * np.cos(turn), ry * radius * np.sin(turn)], 1) + (x, y)


# ---- moving things -------------------------------------------------------------------------------------------------
def rotated(points: Points, angle: float) -> Points:
    """The points turned about the origin."""
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def placed(
    shapes: Iterable[Shape],
    *,
    angle: float = 0.0,
    scale: float | tuple[float, float] = 1.0,
    offset: tuple[float, float] = (0.0, 0.0),
) -> list[Shape]:
    """The shapes scaled, turned about the origin, then moved."""
    return [replace(shape, points=rotated(shape.points * scale, angle) + offset) for shape in shapes]


def bounds(shapes: Iterable[Shape]) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of all the shapes."""
    points = np.concatenate([shape.points for shape in shapes])
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return x0, y0, x1, y1


# ---- colours -------------------------------------------------------------------------------------------------------
def shade(color: Color, factor: float) -> Color:
    """Darker below one, lighter above."""
    return tuple(float(np.clip(channel * factor, 0, 255)) for channel in color)  # type: ignore[return-value]


def vary(color: Color, rng: np.random.Generator, amount: float = 14.0) -> Color:
    """The colour with each channel moved by up to about `amount`, and all of them together by as much."""
    moved = np.asarray(color) + rng.normal(0, amount / 2, 3) + rng.normal(0, amount / 2)
    return tuple(float(channel) for channel in np.clip(moved, 0, 255))  # type: ignore[return-value]


def pick(rng: np.random.Generator, options: Sequence[Color], amount: float = 14.0) -> Color:
    """One of the colours, varied."""
    return vary(options[int(rng.integers(len(options)))], rng, amount)


# ---- the canvas ----------------------------------------------------------------------------------------------------
class Canvas:
    """A square picture in the making with its two label maps; later shapes cover earlier ones in all three."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.image = np.zeros((size, size, 3), np.float32)
        self.part = np.full((size, size), NO_LABEL, np.uint8)
        self.object = np.full((size, size), NO_LABEL, np.uint8)
        self._coarse = smooth_noise(size, 9, rng)
        self._fine = smooth_noise(size, size // 3, rng)

    def paint(self, shape: Shape, *, part_label: int = NO_LABEL, object_label: int = NO_LABEL) -> None:
        """Draw the shape, in pixels, and write its labels where it covers clearly more than half of a pixel."""
        x0, y0 = np.maximum(np.floor(shape.points.min(0)).astype(int) - 1, 0)
        x1, y1 = np.minimum(np.ceil(shape.points.max(0)).astype(int) + 2, self.size)
        if x1 <= x0 or y1 <= y0:
            return
        window = (slice(y0, y1), slice(x0, x1))
        inside, line = _coverage(shape.points - (x0, y0), y1 - y0, x1 - x0)
        color = self._surface(shape.paint, window)
        strength = (inside * shape.opacity)[..., None]
        image = self.image[window]
        image += strength * (color - image)
        image *= 1 - shape.edge * line[..., None]
        covered = inside > 0.6
        self.part[window][covered] = part_label
        self.object[window][covered] = object_label

    def _surface(self, paint: Paint, window: tuple[slice, slice]) -> NDArray[np.float32]:
        """Colour of every pixel of the window, lit from above."""
        coarse, fine = self._coarse[window], self._fine[window]
        mixing = self._pattern(paint, window, coarse, fine)[..., None]
        color = _rgb(paint.color) * (1 - mixing) + _rgb(paint.accent) * mixing
        light = np.linspace(1.05, 0.94, coarse.shape[0], dtype=np.float32)[:, None]
        return color * (light * (1 + 0.06 * coarse + 0.05 * fine))[..., None]

    def _pattern(
        self, paint: Paint, window: tuple[slice, slice], coarse: NDArray[np.float32], fine: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """How much of the accent colour each pixel takes, 0..1."""
        if paint.pattern == "plain":
            return np.zeros(coarse.shape, np.float32)
        if paint.pattern == "patches":
            return (coarse + 0.2 * fine > 0.15).astype(np.float32)
        if paint.pattern == "wool":
            return np.clip(0.3 * fine + 0.2, 0, 0.6)
        y, x = np.mgrid[window].astype(np.float32)
        along = x * math.cos(paint.angle) + y * math.sin(paint.angle)
        wave = np.sin(2 * math.pi * along / paint.period + 2.0 * coarse)
        return np.clip(2 * wave, 0, 1) if paint.pattern == "stripes" else 0.25 + 0.25 * wave


def smooth_noise(size: int, cells: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of about unit variance, [size, size], with `cells` bumps along a side."""
    grid = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def _rgb(color: Color) -> NDArray[np.float32]:
    return np.array(color, np.float32)


def _coverage(points: Points, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Share of each pixel, 0..1, that lies inside the polygon, and that lies on its outline."""
    corners = [(float(x), float(y)) for x, y in points * _SUPERSAMPLE - 0.5]
    masks = []
    for outline_only in (False, True):
        mask = Image.new("L", (width * _SUPERSAMPLE, height * _SUPERSAMPLE))
        if outline_only:
            ImageDraw.Draw(mask).line([*corners, corners[0]], fill=255, width=1)
        else:
            ImageDraw.Draw(mask).polygon(corners, fill=255)
        masks.append(np.asarray(mask.reduce(_SUPERSAMPLE), np.float32) / np.float32(255))
    return masks[0], masks[1]
