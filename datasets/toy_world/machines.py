"""The toy's train, bicycle, motorbike and aeroplane."""

from __future__ import annotations

import math

import numpy as np

from toy_world.shapes import (
    Color,
    Paint,
    Points,
    Shape,
    box,
    ellipse,
    limb,
    pick,
    polygon,
    rounded,
    shade,
    strip,
)
from toy_world.vehicles import GLASS, LAMP, METAL, TIRE

_LIVERIES: tuple[Color, ...] = ((52, 110, 70), (176, 44, 44), (44, 80, 150), (216, 150, 44), (150, 152, 160))
_FRAMES: tuple[Color, ...] = (
    (210, 44, 48),
    (44, 120, 196),
    (60, 150, 80),
    (240, 200, 60),
    (240, 240, 240),
    (60, 60, 66),
)
_HULLS: tuple[Color, ...] = ((236, 238, 242), (206, 214, 224), (196, 60, 56), (240, 220, 140))
_DARK = Paint((44, 42, 44))


def train(rng: np.random.Generator) -> list[Shape]:
    """A locomotive (`head`) coming towards the viewer with coaches behind it, the last one seen from its `back`."""
    livery = pick(rng, _LIVERIES)
    coach_color = livery if rng.random() < 0.5 else pick(rng, _LIVERIES)
    shapes: list[Shape] = []
    coaches = int(rng.integers(1, 3))
    rear = -0.25 - 0.85 * coaches
    for index in range(coaches):
        x1 = -0.25 - 0.85 * index
        shapes += _coach(x1 - 0.82, x1, coach_color)
    shapes.append(
        Shape(polygon((rear, -0.60), (rear, -0.14), (rear - 0.16, -0.17), (rear - 0.16, -0.56)), _DARK, "back")
    )
    slant = rng.uniform(0.16, 0.34)
    nose = 0.72 + slant
    paint, stripe = Paint(livery), Paint((244, 206, 70))
    shapes += [
        Shape(
            polygon((-0.22, -0.74), (-0.14, -0.82), (nose - 0.12, -0.80), (0.72, -0.74)),
            Paint(shade(livery, 0.6)),
            "roof",
        ),
        Shape(box(-0.22, -0.74, 0.72, -0.10), paint, "head"),
        Shape(box(-0.22, -0.36, 0.72, -0.10), Paint(shade(livery, 0.72)), "side"),
        Shape(box(-0.22, -0.40, 0.72, -0.35), stripe, "side", edge=0.0),
        Shape(box(0.42, -0.66, 0.64, -0.47), GLASS, "head"),
        Shape(
            polygon((0.72, -0.74), (nose - 0.10, -0.72), (nose, -0.42), (nose, -0.14), (0.72, -0.10)), stripe, "front"
        ),
        Shape(polygon((0.76, -0.68), (nose - 0.12, -0.67), (nose - 0.04, -0.44), (0.76, -0.46)), GLASS, "front"),
        Shape(ellipse(0.78, -0.24, 0.045, 0.055), LAMP, "headlight"),
        Shape(ellipse(nose - 0.05, -0.26, 0.036, 0.05), LAMP, "headlight"),
    ]
    return shapes + [Shape(ellipse(x, -0.06, 0.065, 0.065), _DARK, None) for x in np.arange(rear + 0.15, 0.7, 0.27)]


def _coach(x0: float, x1: float, color: Color) -> list[Shape]:
    shapes = [
        Shape(
            polygon((x0, -0.62), (x0 + 0.06, -0.69), (x1 - 0.04, -0.69), (x1, -0.62)), Paint(shade(color, 0.6)), "roof"
        ),
        Shape(box(x0, -0.62, x1, -0.14), Paint(shade(color, 1.2)), "coach"),
        Shape(box(x0, -0.26, x1, -0.14), Paint(shade(color, 0.72)), "side"),
    ]
    width = (x1 - x0) / 4
    for index in range(4):
        left = x0 + width * (index + 0.2)
        shapes.append(Shape(box(left, -0.54, left + width * 0.6, -0.36), GLASS, "coach"))
    return shapes


def bicycle(rng: np.random.Generator) -> list[Shape]:
    """From the side; between the spokes the background shows, as in photographs, and is still labelled wheel."""
    frame = Paint(pick(rng, _FRAMES))
    radius, base = 0.34, 0.52
    seat_tube, head_tube = (-0.20, -0.78), (0.36, -0.74)
    shapes: list[Shape] = []
    for x in (-base, base):
        shapes.append(
            Shape(ellipse(x, -radius, radius, radius), Paint((196, 196, 196)), "wheel", opacity=0.18, edge=0.0)
        )
        shapes += [Shape(spoke, METAL, "wheel", edge=0.0) for spoke in _spokes(x, -radius, radius, rng)]
        shapes.append(Shape(_ring(x, -radius, radius, 0.055), TIRE, "wheel", edge=0.0))
    pedal = (-0.08, -radius + 0.02)
    for start, end in (
        (pedal, seat_tube),
        (pedal, (0.38, -0.62)),
        (seat_tube, (0.36, -0.70)),
        (pedal, (-base, -radius)),
        ((-0.17, -0.66), (-base, -radius)),
        (head_tube, (base, -radius)),
    ):
        shapes.append(Shape(limb(start, end, 0.045), frame, None, edge=0.1))
    bar = [(0.35, -0.80), (0.38, -0.92), (0.52, -0.94), (0.56, -0.84)] if rng.random() < 0.5 else [
        (0.35, -0.78), (0.37, -0.96), (0.24, -1.00)
    ]  # fmt: skip
    shapes += [
        Shape(_ring(*pedal, 0.125, 0.06), METAL, "chainwheel"),
        Shape(ellipse(*pedal, 0.08, 0.08), _DARK, "chainwheel"),
        Shape(strip(bar, [0.055] * len(bar)), _DARK, "handlebar"),
        Shape(rounded(-0.36, -0.89, -0.07, -0.78, power=2.6), _DARK, "saddle"),
    ]
    if rng.random() < 0.6:
        shapes.append(Shape(ellipse(0.47, -0.74, 0.06, 0.06), LAMP, "headlight", edge=0.6))
    return shapes


def motorbike(rng: np.random.Generator) -> list[Shape]:
    """From the side: fat wheels, a tank and an engine that are no parts, a long saddle."""
    color = pick(rng, _FRAMES)
    paint, radius, base = Paint(color), 0.30, 0.60
    shapes: list[Shape] = []
    for x in (-base, base):
        shapes += [
            Shape(ellipse(x, -radius, radius, radius), TIRE, "wheel"),
            Shape(ellipse(x, -radius, radius * 0.62, radius * 0.62), Paint((120, 122, 128)), "wheel"),
            Shape(ellipse(x, -radius, radius * 0.22, radius * 0.22), METAL, "wheel"),
        ]
    shapes += [
        Shape(limb((0.34, -0.82), (base, -radius), 0.075), METAL, None),
        Shape(limb((-0.20, -0.36), (-base, -radius), 0.09), METAL, None),
        Shape(limb((-0.05, -0.22), (-0.85, -0.20), 0.09, 0.12), METAL, None),
        Shape(
            rounded(-0.24, -0.56, 0.26, -0.16, power=3), Paint((92, 94, 100), "stripes", (52, 52, 56), 4, 1.57), None
        ),
        Shape(polygon((-0.14, -0.56), (-0.06, -0.78), (0.26, -0.80), (0.38, -0.66), (0.22, -0.54)), paint, None),
        Shape(polygon((-0.80, -0.62), (-0.84, -0.74), (-0.20, -0.66), (-0.12, -0.54), (-0.5, -0.52)), paint, None),
        Shape(strip([(-0.78, -0.74), (-0.42, -0.70), (-0.08, -0.72)], [0.10, 0.13, 0.10]), _DARK, "saddle"),
        Shape(strip([(0.33, -0.80), (0.30, -0.98), (0.12, -1.00)], [0.06, 0.06, 0.075]), _DARK, "handlebar"),
        Shape(ellipse(0.46, -0.78, 0.10, 0.105), Paint(shade(color, 0.7)), "headlight"),
        Shape(ellipse(0.49, -0.78, 0.07, 0.085), LAMP, "headlight"),
        Shape(polygon((0.34, -0.62), (0.62, -0.66), (0.86, -0.50), (0.82, -0.46), (0.6, -0.58)), paint, None),
    ]
    return shapes


def aeroplane(rng: np.random.Generator) -> list[Shape]:
    """From the side, in the air or on its wheels."""
    hull = pick(rng, _HULLS)
    accent = Paint(pick(rng, _FRAMES))
    wing, engine = Paint(shade(hull, 0.72)), Paint(shade(hull, 0.55))
    shapes: list[Shape] = [
        Shape(polygon((-0.10, -0.46), (-0.26, -0.72), (-0.10, -0.72), (0.26, -0.46)), Paint(shade(hull, 0.6)), "wing"),
    ]
    if rng.random() < 0.6:
        for x in (-0.16, 0.62):
            shapes.append(Shape(limb((x, -0.30), (x, -0.10), 0.04), METAL, None))
            shapes.append(Shape(ellipse(x, -0.07, 0.07, 0.07), TIRE, "wheel"))
    shapes += [
        Shape(polygon((-0.66, -0.52), (-1.02, -0.94), (-0.82, -0.94), (-0.42, -0.52)), accent, "stern"),
        Shape(_fuselage(), Paint(hull), "body"),
        Shape(
            polygon((-0.62, -0.38), (-1.00, -0.53), (-0.70, -0.53), (-0.52, -0.49)), Paint(shade(hull, 0.6)), "stern"
        ),
        Shape(strip([(-0.50, -0.42), (0.80, -0.40)], [0.03, 0.03]), accent, "body", edge=0.0),
        Shape(polygon((-0.60, -0.46), (-1.12, -0.60), (-0.96, -0.46), (-0.74, -0.42)), wing, "tail"),
        Shape(polygon((0.80, -0.54), (0.86, -0.46), (0.72, -0.46), (0.70, -0.54)), GLASS, "body"),
        Shape(polygon((0.30, -0.38), (-0.04, -0.38), (-0.50, -0.06), (-0.26, -0.06)), wing, "wing"),
    ]
    for x in np.arange(-0.35, 0.6, 0.13):
        shapes.append(Shape(box(x, -0.52, x + 0.06, -0.46), Paint((70, 96, 130)), "body", edge=0.0))
    shapes += [
        Shape(rounded(-0.08, -0.30, 0.22, -0.17, power=3), engine, "engine"),
        Shape(ellipse(0.21, -0.235, 0.035, 0.062), _DARK, "engine"),
    ]
    return shapes


def _fuselage() -> Points:
    upper = [(-0.98, -0.52), (-0.60, -0.58), (0.60, -0.60), (0.84, -0.54), (0.98, -0.42)]
    lower = [(0.94, -0.34), (0.76, -0.28), (-0.40, -0.30), (-0.80, -0.44)]
    return polygon(*upper, *lower)


def _ring(x: float, y: float, radius: float, width: float) -> Points:
    """A circle's rim as one polygon: around outside, back inside."""
    outer = ellipse(x, y, radius, radius, steps=36)
    inner = ellipse(x, y, radius - width, radius - width, steps=36)
    return np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])


def _spokes(x: float, y: float, radius: float, rng: np.random.Generator) -> list[Points]:
    start = rng.uniform(0, math.pi / 4)
    turns = start + np.arange(4) * math.pi / 4
    return [
        limb(
            (x - radius * math.cos(t), y - radius * math.sin(t)),
            (x + radius * math.cos(t), y + radius * math.sin(t)),
            0.012,
        )
        for t in turns
    ]
