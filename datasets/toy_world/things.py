"""The toy's household objects, those with parts and those that Pascal-Part-116 labels as objects only."""

from __future__ import annotations

import math

import numpy as np

from toy_world.shapes import Color, Paint, Shape, box, cloud, ellipse, limb, pick, polygon, rounded, shade, strip

_GLASSES: tuple[Color, ...] = ((40, 110, 62), (130, 70, 30), (70, 130, 200), (210, 60, 50), (225, 225, 220))
_CAPS: tuple[Color, ...] = ((220, 50, 50), (240, 200, 60), (240, 240, 240), (40, 60, 140))
_LEAVES: tuple[Color, ...] = ((60, 140, 60), (90, 160, 70), (44, 108, 66))
_FLOWERS: tuple[Color, ...] = ((226, 70, 110), (244, 200, 60), (160, 80, 190), (240, 240, 240))
_POTS: tuple[Color, ...] = ((190, 96, 58), (150, 76, 50), (210, 206, 196), (70, 100, 150))
_WOODS: tuple[Color, ...] = ((150, 98, 56), (110, 70, 42), (190, 146, 96))
_FABRICS: tuple[Color, ...] = ((150, 50, 60), (70, 96, 130), (120, 124, 100), (196, 176, 140))


def bottle(rng: np.random.Generator) -> list[Shape]:
    """A standing bottle with a label band, wine-shaped or stout."""
    glass, cap = Paint(pick(rng, _GLASSES)), Paint(pick(rng, _CAPS))
    half, shoulder = rng.uniform(0.15, 0.23), rng.uniform(0.55, 0.68)
    neck = half * rng.uniform(0.34, 0.5)
    right = [(half, 0.0), (half, -shoulder), (neck, -shoulder - 0.15), (neck, -0.94)]
    outline = polygon(*right, *[(-x, y) for x, y in reversed(right)])
    return [
        Shape(outline, glass, "body"),
        Shape(box(-half, -0.44, half, -0.18), Paint(pick(rng, _CAPS)), "body"),
        Shape(
            limb((-half * 0.55, -0.52), (-half * 0.55, -0.12), 0.03), Paint(shade(glass.color, 1.6)), "body", edge=0.0
        ),
        Shape(rounded(-neck * 1.35, -1.04, neck * 1.35, -0.90, power=6), cap, "cap"),
    ]


def pottedplant(rng: np.random.Generator) -> list[Shape]:
    """Leaves or a flowering bush in a pot."""
    leaf = pick(rng, _LEAVES)
    shapes: list[Shape] = []
    if rng.random() < 0.5:
        for angle in np.linspace(-1.25, 1.25, int(rng.integers(6, 10))):
            reach = rng.uniform(0.55, 0.78)
            x, y = math.sin(angle) * reach, -0.40 - math.cos(angle) * reach
            middle = (0.55 * x, -0.40 + 0.65 * (y + 0.40) - 0.05)
            blade = strip([(0.0, -0.38), middle, (x, y)], [0.05, 0.17, 0.02])
            shapes.append(Shape(blade, Paint(shade(leaf, rng.uniform(0.75, 1.25))), "plant"))
    else:
        shapes.append(Shape(limb((0, -0.3), (0, -0.6), 0.07), Paint((96, 70, 44)), "plant"))
        shapes.append(Shape(cloud(0, -0.78, 0.48, 0.42, rng), Paint(leaf, "patches", shade(leaf, 0.75)), "plant"))
        bloom = Paint(pick(rng, _FLOWERS))
        for _ in range(int(rng.integers(0, 8))):
            shapes.append(
                Shape(ellipse(rng.uniform(-0.32, 0.32), rng.uniform(-1.05, -0.5), 0.065, 0.065), bloom, "plant")
            )
    pot = pick(rng, _POTS)
    shapes.append(Shape(polygon((-0.28, -0.36), (0.28, -0.36), (0.20, 0.0), (-0.20, 0.0)), Paint(pot), "pot"))
    shapes.append(Shape(box(-0.32, -0.42, 0.32, -0.31), Paint(shade(pot, 1.12)), "pot"))
    return shapes


def tvmonitor(rng: np.random.Generator) -> list[Shape]:
    """A flat set on a foot; only the screen is a part."""
    frame = Paint(pick(rng, ((34, 34, 38), (190, 192, 196), (70, 60, 54))))
    wide = rng.uniform(0.52, 0.68)
    picture = Paint(pick(rng, ((70, 110, 170), (24, 26, 34), (120, 170, 120))), "grain", pick(rng, _FLOWERS), 16.0, 0.6)
    return [
        Shape(polygon((-0.08, -0.16), (0.08, -0.16), (0.12, -0.02), (-0.12, -0.02)), frame),
        Shape(rounded(-0.30, -0.07, 0.30, 0.0, power=4), frame),
        Shape(rounded(-wide, -0.92, wide, -0.13, power=14), frame),
        Shape(box(-wide + 0.06, -0.86, wide - 0.06, -0.21), picture, "screen"),
        Shape(
            polygon((-wide + 0.10, -0.82), (-wide + 0.30, -0.82), (-wide + 0.14, -0.5)),
            Paint((235, 240, 250)),
            "screen",
            0.35,
            0.0,
        ),
        Shape(ellipse(wide - 0.10, -0.165, 0.02, 0.02), Paint((90, 230, 110)), edge=0.0),
    ]


def chair(rng: np.random.Generator) -> list[Shape]:
    """A wooden chair from a corner."""
    wood, seat = Paint(pick(rng, _WOODS)), Paint(pick(rng, _FABRICS))
    dark = Paint(shade(wood.color, 0.65))
    shapes = [Shape(limb((x, -0.5), (x, 0.0), 0.06), dark) for x in (-0.16, 0.32)]
    shapes += [Shape(limb((x, -1.15), (x, -0.5), 0.06), wood) for x in (-0.30, 0.14)]
    shapes += [Shape(box(-0.30, y, 0.14, y + 0.09), wood) for y in (-1.12, -0.92, -0.74)]
    shapes.append(Shape(polygon((-0.32, -0.56), (0.16, -0.56), (0.36, -0.46), (-0.14, -0.46)), seat))
    return shapes + [Shape(limb((x, -0.48), (x, 0.06), 0.065), wood) for x in (-0.13, 0.33)]


def sofa(rng: np.random.Generator) -> list[Shape]:
    """A two-seater from the front."""
    color = pick(rng, _FABRICS)
    shapes = [Shape(rounded(-0.80, -0.80, 0.80, -0.20, power=5), Paint(shade(color, 0.8)))]
    shapes += [Shape(rounded(x, -0.46, x + 0.66, -0.18, power=5), Paint(shade(color, 1.15))) for x in (-0.66, 0.0)]
    shapes.append(Shape(box(-0.72, -0.22, 0.72, -0.05), Paint(color)))
    return shapes + [Shape(rounded(x - 0.14, -0.58, x + 0.14, -0.02, power=4), Paint(color)) for x in (-0.80, 0.80)]


def diningtable(rng: np.random.Generator) -> list[Shape]:
    """A table with a cloth or a bare top."""
    wood = pick(rng, _WOODS)
    top = Paint(wood, "grain", shade(wood, 0.8), 9.0, 1.4)
    shapes = [Shape(limb((x, -0.5), (x, 0.0), 0.07), Paint(shade(wood, 0.7))) for x in (-0.62, -0.40, 0.40, 0.62)]
    return [*shapes, Shape(polygon((-0.60, -0.64), (0.60, -0.64), (0.80, -0.50), (-0.80, -0.50)), top)]


def boat(rng: np.random.Generator) -> list[Shape]:
    """A sailing boat."""
    hull = Paint(pick(rng, _FABRICS))
    sail = Paint(pick(rng, ((244, 240, 230), (226, 120, 60), (120, 170, 210))))
    return [
        Shape(limb((0.0, -1.3), (0.0, -0.2), 0.04), Paint(pick(rng, _WOODS))),
        Shape(polygon((0.05, -1.25), (0.60, -0.36), (0.05, -0.36)), sail),
        Shape(polygon((-0.05, -1.10), (-0.05, -0.36), (-0.45, -0.36)), Paint(shade(sail.color, 0.85))),
        Shape(polygon((-0.75, -0.28), (0.80, -0.28), (0.55, 0.0), (-0.55, 0.0)), hull),
    ]
