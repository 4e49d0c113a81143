"""The toy's road vehicles with bodies: car and bus share every part name and none of their proportions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toy_world.shapes import Color, Paint, Shape, box, ellipse, pick, polygon, rounded, shade

GLASS = Paint((150, 190, 214))
TIRE = Paint((36, 36, 40))
LAMP = Paint((252, 240, 170))
PLATE = Paint((246, 246, 238))
METAL = Paint((176, 180, 186))

_CAR_COLORS: tuple[Color, ...] = (
    (196, 40, 44),
    (40, 84, 176),
    (206, 208, 212),
    (52, 56, 62),
    (60, 132, 92),
    (224, 186, 60),
)
_BUS_COLORS: tuple[Color, ...] = ((236, 176, 36), (190, 44, 40), (52, 140, 160), (232, 232, 226), (106, 60, 130))


@dataclass(frozen=True)
class _Body:
    """Bodywork seen from a corner: the long side on the left, the front or the back slanting away on the right."""

    end: str
    """Part name of the short side: front or back."""
    paint: Paint
    lamp: Paint

    @property
    def top(self) -> Paint:
        return Paint(shade(self.paint.color, 1.25))

    @property
    def away(self) -> Paint:
        return Paint(shade(self.paint.color, 0.74))


def car(rng: np.random.Generator) -> list[Shape]:
    """Seen from a corner, or straight from the front or the back."""
    paint = Paint(pick(rng, _CAR_COLORS))
    end = "front" if rng.random() < 0.6 else "back"
    body = _Body(end, paint, LAMP if end == "front" else Paint((210, 40, 36)))
    return _car_corner(body, rng) if rng.random() < 0.7 else _car_end(body)


def bus(rng: np.random.Generator) -> list[Shape]:
    """Seen from a corner, or straight from the front or the back."""
    paint = Paint(pick(rng, _BUS_COLORS))
    end = "front" if rng.random() < 0.6 else "back"
    body = _Body(end, paint, LAMP if end == "front" else Paint((210, 40, 36)))
    return _bus_corner(body, rng) if rng.random() < 0.7 else _bus_end(body)


def wheel(x: float, y: float, radius: float, *, squash: float = 1.0) -> list[Shape]:
    """A tyre with a hub cap."""
    return [
        Shape(ellipse(x, y, radius * squash, radius), TIRE, "wheel"),
        Shape(ellipse(x, y, radius * 0.5 * squash, radius * 0.5), METAL, "wheel"),
    ]


def _mirrors(paint: Paint, *positions: tuple[float, float], size: float) -> list[Shape]:
    return [
        Shape(rounded(x - size, y - size * 0.8, x + size, y + size), paint, "mirror", edge=0.6) for x, y in positions
    ]


# ---- car -----------------------------------------------------------------------------------------------------------
def _car_corner(body: _Body, rng: np.random.Generator) -> list[Shape]:
    slant = rng.uniform(0.16, 0.34)
    nose = 0.92 + slant
    shapes = [
        Shape(polygon((-0.95, -0.16), (-0.95, -0.44), (0.92, -0.46), (0.92, -0.12)), body.paint, "side"),
        Shape(polygon((-0.62, -0.44), (-0.40, -0.78), (0.34, -0.78), (0.60, -0.46)), body.paint, "side"),
        Shape(polygon((0.92, -0.46), (nose, -0.42), (nose, -0.16), (0.92, -0.12)), body.away, body.end),
        Shape(polygon((0.60, -0.46), (0.66 + slant * 0.6, -0.50), (nose, -0.42), (0.92, -0.46)), body.top, body.end),
        Shape(polygon((-0.40, -0.78), (-0.32, -0.86), (0.40, -0.86), (0.34, -0.78)), body.top, "roof"),
        Shape(polygon((0.36, -0.79), (0.42, -0.85), (0.66 + slant * 0.6, -0.52), (0.61, -0.47)), GLASS, "window"),
        Shape(box(-0.28, -0.72, 0.02, -0.16), Paint(shade(body.paint.color, 0.92)), "door", edge=0.6),
        Shape(box(0.02, -0.72, 0.40, -0.16), Paint(shade(body.paint.color, 0.92)), "door", edge=0.6),
        Shape(polygon((-0.50, -0.48), (-0.36, -0.72), (-0.31, -0.72), (-0.31, -0.48)), GLASS, "window"),
        Shape(polygon((-0.25, -0.48), (-0.25, -0.72), (-0.01, -0.72), (-0.01, -0.48)), GLASS, "window"),
        Shape(polygon((0.05, -0.48), (0.05, -0.72), (0.32, -0.72), (0.50, -0.48)), GLASS, "window"),
        Shape(ellipse(0.97, -0.36, 0.050, 0.055), body.lamp, "headlight"),
        Shape(ellipse(nose - 0.03, -0.35, 0.032, 0.05), body.lamp, "headlight"),
        Shape(box(0.92 + 0.32 * slant, -0.25, 0.92 + 0.80 * slant, -0.17), PLATE, "license plate", edge=0.6),
    ]
    shapes += wheel(-0.56, -0.15, 0.185) + wheel(0.60, -0.15, 0.185)
    return shapes + _mirrors(body.top, (0.52, -0.50), size=0.055)


def _car_end(body: _Body) -> list[Shape]:
    shapes = wheel(-0.50, -0.12, 0.15, squash=0.6) + wheel(0.50, -0.12, 0.15, squash=0.6)
    shapes += [
        Shape(polygon((-0.40, -0.84), (-0.33, -0.92), (0.33, -0.92), (0.40, -0.84)), body.top, "roof"),
        Shape(polygon((-0.54, -0.50), (-0.40, -0.85), (0.40, -0.85), (0.54, -0.50)), body.paint, body.end),
        Shape(polygon((-0.46, -0.54), (-0.35, -0.81), (0.35, -0.81), (0.46, -0.54)), GLASS, "window"),
        Shape(rounded(-0.62, -0.54, 0.62, -0.12, power=6), body.paint, body.end),
        Shape(box(-0.30, -0.38, 0.30, -0.28), Paint((40, 42, 46)), body.end),
        Shape(box(-0.16, -0.24, 0.16, -0.15), PLATE, "license plate", edge=0.6),
    ]
    for side in (-1, 1):
        shapes.append(Shape(ellipse(side * 0.47, -0.36, 0.095, 0.075), body.lamp, "headlight"))
    return shapes + (_mirrors(body.top, (-0.62, -0.56), (0.62, -0.56), size=0.06) if body.end == "front" else [])


# ---- bus -----------------------------------------------------------------------------------------------------------
def _bus_corner(body: _Body, rng: np.random.Generator) -> list[Shape]:
    slant = rng.uniform(0.20, 0.42)
    nose = 0.85 + slant
    shapes = [
        Shape(
            polygon((-0.95, -0.98), (-0.80, -1.08), (nose - 0.08, -1.06), (nose, -0.96), (0.85, -1.0)), body.top, "roof"
        ),
        Shape(box(-0.95, -1.0, 0.85, -0.14), body.paint, "side"),
        Shape(polygon((0.85, -1.0), (nose, -0.95), (nose, -0.18), (0.85, -0.14)), body.away, body.end),
        Shape(polygon((0.89, -0.90), (nose - 0.03, -0.86), (nose - 0.03, -0.54), (0.89, -0.52)), GLASS, "window"),
        Shape(box(0.60, -0.82, 0.80, -0.15), Paint(shade(body.paint.color, 0.62)), "door", edge=0.7),
        Shape(box(-0.16, -0.82, 0.04, -0.15), Paint(shade(body.paint.color, 0.62)), "door", edge=0.7),
    ]
    for x in (-0.90, -0.66, -0.42, 0.08, 0.33):
        shapes.append(Shape(box(x, -0.88, x + 0.21, -0.54), GLASS, "window"))
    shapes += [
        Shape(ellipse(0.85 + 0.16 * slant, -0.34, 0.045, 0.055), body.lamp, "headlight"),
        Shape(ellipse(0.85 + 0.86 * slant, -0.34, 0.035, 0.050), body.lamp, "headlight"),
        Shape(box(0.85 + 0.32 * slant, -0.28, 0.85 + 0.72 * slant, -0.21), PLATE, "license plate", edge=0.6),
    ]
    shapes += wheel(-0.58, -0.13, 0.145) + wheel(0.38, -0.13, 0.145)
    return shapes + (_mirrors(TIRE, (0.87, -0.82), (nose + 0.03, -0.80), size=0.05) if body.end == "front" else [])


def _bus_end(body: _Body) -> list[Shape]:
    shapes = wheel(-0.36, -0.08, 0.10, squash=0.7) + wheel(0.36, -0.08, 0.10, squash=0.7)
    shapes += [
        Shape(polygon((-0.48, -1.22), (-0.38, -1.31), (0.38, -1.31), (0.48, -1.22)), body.top, "roof"),
        Shape(rounded(-0.50, -1.24, 0.50, -0.10, power=9), body.paint, body.end),
        Shape(rounded(-0.42, -1.06, 0.42, -0.56, power=9), GLASS, "window"),
        Shape(box(-0.32, -1.20, 0.32, -1.11), Paint((40, 42, 46)), body.end),
        Shape(box(-0.15, -0.24, 0.15, -0.15), PLATE, "license plate", edge=0.6),
    ]
    for side in (-1, 1):
        shapes.append(Shape(ellipse(side * 0.37, -0.36, 0.075, 0.07), body.lamp, "headlight"))
    return shapes + (_mirrors(TIRE, (-0.56, -0.92), (0.56, -0.92), size=0.065) if body.end == "front" else [])
