"""What stands behind and in front of the toy's objects: ground, sky, rooms, clutter. Nothing here is labelled."""

from __future__ import annotations

import math

import numpy as np

from toy_world.shapes import Canvas, Color, Paint, Shape, box, cloud, ellipse, limb, pick, polygon, shade

_SKIES: tuple[Color, ...] = ((150, 190, 230), (200, 206, 212), (236, 190, 150), (110, 130, 160))
_GROUNDS: tuple[Color, ...] = ((96, 136, 66), (150, 132, 96), (120, 120, 124), (206, 188, 142), (226, 230, 236))
_WALLS: tuple[Color, ...] = ((222, 212, 192), (170, 190, 196), (196, 160, 150), (140, 150, 130), (110, 104, 120))
_FLOORS: tuple[Color, ...] = ((140, 100, 66), (110, 106, 104), (180, 170, 156), (90, 66, 50))
_ANY: tuple[Color, ...] = (
    (180, 60, 56),
    (60, 90, 150),
    (70, 130, 80),
    (220, 186, 90),
    (70, 66, 70),
    (230, 226, 220),
    (150, 100, 66),
)


def draw_backdrop(canvas: Canvas, rng: np.random.Generator) -> float:
    """Fill the canvas; returns the height of the horizon as a share of the picture, from the top."""
    horizon = rng.uniform(0.30, 0.62)
    if rng.random() < 0.62:
        _outdoors(canvas, rng, horizon)
    else:
        _indoors(canvas, rng, horizon)
    return horizon


def draw_foreground(canvas: Canvas, rng: np.random.Generator) -> None:
    """Something unlabelled that hides a little of what stands behind it: grass, a post or a box."""
    size, kind = canvas.size, rng.random()
    x = rng.uniform(0.05, 0.95) * size
    if kind < 0.45:
        green = pick(rng, _GROUNDS[:1])
        for _ in range(int(rng.integers(8, 18))):
            foot = x + rng.normal(0, 0.10) * size
            tip = (foot + rng.normal(0, 0.04) * size, size * rng.uniform(0.74, 0.90))
            canvas.paint(
                Shape(limb((foot, size + 2), tip, 0.022 * size, 1.0), Paint(shade(green, rng.uniform(0.6, 1.2))))
            )
    elif kind < 0.75:
        width = rng.uniform(0.02, 0.05) * size
        canvas.paint(Shape(box(x, -2, x + width, size + 2), Paint(pick(rng, _ANY))))
    else:
        wide, tall = rng.uniform(0.12, 0.3, 2) * size
        canvas.paint(
            Shape(box(x - wide / 2, size - tall * 0.8, x + wide / 2, size + 2), Paint(pick(rng, _ANY), "grain"))
        )


def _outdoors(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    size = canvas.size
    line = horizon * size
    sky, ground = pick(rng, _SKIES, 20), pick(rng, _GROUNDS, 20)
    canvas.paint(Shape(box(-2, -2, size + 2, size + 2), Paint(sky), edge=0.0))
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(0, size), rng.uniform(0, line)
        puff = cloud(x, y, rng.uniform(0.08, 0.2) * size, rng.uniform(0.02, 0.05) * size, rng)
        canvas.paint(Shape(puff, Paint(shade(sky, 1.25)), edge=0.0))
    for _ in range(int(rng.integers(1, 6))):
        _far_thing(canvas, rng, line)
    texture = Paint(ground, "grain", shade(ground, 0.7), rng.uniform(3, 12), rng.uniform(1.2, 1.9))
    canvas.paint(Shape(box(-2, line, size + 2, size + 2), texture, edge=0.0))
    for _ in range(int(rng.integers(2, 8))):
        y = rng.uniform(line, size)
        spot = ellipse(rng.uniform(0, size), y, rng.uniform(2, 16), rng.uniform(1, 5))
        canvas.paint(Shape(spot, Paint(shade(ground, rng.uniform(0.6, 1.3))), edge=0.1))


def _far_thing(canvas: Canvas, rng: np.random.Generator, line: float) -> None:
    """A hill, a house with windows, or a tree on the horizon."""
    size, x = canvas.size, rng.uniform(0, canvas.size)
    kind = rng.random()
    if kind < 0.3:
        hill = pick(rng, _GROUNDS[:2], 24)
        canvas.paint(Shape(ellipse(x, line, rng.uniform(0.2, 0.5) * size, rng.uniform(0.05, 0.2) * size), Paint(hill)))
    elif kind < 0.6:
        wide, tall = rng.uniform(0.12, 0.35) * size, rng.uniform(0.15, 0.5) * size
        color = pick(rng, _ANY + _WALLS, 20)
        canvas.paint(Shape(box(x, line - tall, x + wide, line + 2), Paint(color)))
        for left in np.arange(x + 4, x + wide - 6, 11):
            for top in np.arange(line - tall + 5, line - 8, 13):
                canvas.paint(
                    Shape(box(left, top, left + 5, top + 7), Paint(shade(color, rng.uniform(0.4, 1.5))), edge=0.1)
                )
    else:
        tall = rng.uniform(0.12, 0.4) * size
        leaf = pick(rng, ((60, 110, 56), (110, 130, 60), (170, 120, 60)), 20)
        canvas.paint(Shape(limb((x, line + 3), (x, line - tall), 0.03 * size), Paint((92, 70, 52))))
        crown = cloud(x, line - tall, rng.uniform(0.06, 0.14) * size, rng.uniform(0.08, 0.16) * size, rng)
        canvas.paint(Shape(crown, Paint(leaf, "patches", shade(leaf, 0.8))))


def _indoors(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    size = canvas.size
    line = (horizon + 0.15) * size
    wall, floor = pick(rng, _WALLS, 20), pick(rng, _FLOORS, 20)
    paper = Paint(wall, "stripes" if rng.random() < 0.3 else "plain", shade(wall, 0.9), rng.uniform(8, 20), 0.0)
    canvas.paint(Shape(box(-2, -2, size + 2, size + 2), paper, edge=0.0))
    for _ in range(int(rng.integers(1, 6))):
        x, y = rng.uniform(-0.1, 0.95) * size, rng.uniform(0, 0.7) * line
        wide, tall = rng.uniform(0.08, 0.3, 2) * size
        picture = Paint(pick(rng, _ANY), "patches" if rng.random() < 0.5 else "plain", pick(rng, _ANY))
        canvas.paint(Shape(box(x - 2, y - 2, x + wide + 2, y + tall + 2), Paint(pick(rng, _FLOORS))))
        canvas.paint(Shape(box(x, y, x + wide, y + tall), picture))
    boards = Paint(floor, "grain", shade(floor, 0.75), rng.uniform(5, 14), rng.uniform(0.2, 1.5))
    canvas.paint(Shape(box(-2, line, size + 2, size + 2), boards))
    if rng.random() < 0.5:
        x, wide = rng.uniform(0.2, 0.8) * size, rng.uniform(0.25, 0.5) * size
        rug = ellipse(x, (line + size) / 2, wide, (size - line) * 0.35)
        canvas.paint(Shape(rug, Paint(pick(rng, _ANY), "stripes", pick(rng, _ANY), 9.0, math.pi / 2)))
    for _ in range(int(rng.integers(0, 5))):
        x, y = rng.uniform(0, size), rng.uniform(line, size)
        radius = rng.uniform(0.03, 0.08) * size
        ball = (
            ellipse(x, y, radius, radius) if rng.random() < 0.5 else box(x - radius, y - radius, x + radius, y + radius)
        )
        canvas.paint(Shape(ball, Paint(pick(rng, _ANY))))
    if rng.random() < 0.3:
        canvas.paint(
            Shape(polygon((-2, -2), (0.12 * size, -2), (0.07 * size, line + 4), (-2, line + 4)), Paint(pick(rng, _ANY)))
        )
