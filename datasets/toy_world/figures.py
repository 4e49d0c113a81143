"""The toy's two-legged creatures: birds and people."""

from __future__ import annotations

import math

import numpy as np

from toy_world.shapes import (
    Color,
    Paint,
    Shape,
    arc_line,
    box,
    ellipse,
    limb,
    pick,
    placed,
    polygon,
    rounded,
    shade,
    strip,
)

_SKINS: tuple[Color, ...] = ((242, 206, 176), (224, 172, 130), (168, 112, 76), (104, 66, 46))
_HAIRS: tuple[Color, ...] = ((40, 28, 22), (92, 56, 30), (196, 152, 84), (150, 66, 34), (70, 70, 72))
_CLOTHES: tuple[Color, ...] = (
    (196, 48, 52),
    (44, 88, 168),
    (60, 140, 84),
    (232, 190, 60),
    (120, 66, 140),
    (240, 240, 236),
    (54, 56, 66),
)
_FEATHERS: tuple[Color, ...] = ((48, 104, 190), (204, 56, 48), (236, 196, 52), (70, 150, 96), (70, 62, 66))
_EYE = Paint((20, 18, 16))


def bird(rng: np.random.Generator) -> list[Shape]:
    """Perched with a folded wing, or flying with a raised one."""
    color = pick(rng, _FEATHERS)
    body, wing = Paint(color), Paint(shade(color, 0.66), "stripes", shade(color, 0.45), 5.0, 1.2)
    bill = Paint(pick(rng, ((244, 160, 40), (60, 52, 46), (230, 110, 50))))
    flying = rng.random() < 0.35
    shapes: list[Shape] = []
    if not flying:
        for x in (-0.02, 0.09):
            shapes.append(Shape(limb((x - 0.02, -0.34), (x, -0.04), 0.05, 0.035), bill, "leg", edge=0.2))
            toes = polygon((x - 0.07, 0), (x - 0.02, -0.07), (x + 0.03, -0.06), (x + 0.15, 0))
            shapes.append(Shape(toes, bill, "foot", edge=0.2))
    tail = polygon((-0.26, -0.60), (-0.74, -0.50), (-0.70, -0.34), (-0.22, -0.42))
    shapes.append(Shape(tail, wing, "tail"))
    if flying:
        far = polygon((-0.05, -0.62), (0.22, -1.20), (0.30, -0.62))
        shapes.append(Shape(far, Paint(shade(color, 0.5)), "wing"))
    shapes.append(Shape(ellipse(0, -0.52, 0.36, 0.23, angle=-0.25), body, "torso"))
    stretch = rng.uniform(0.0, 0.14)
    center = (0.38 + 0.4 * stretch, -0.80 - stretch)
    shapes.append(Shape(limb((0.20, -0.60), center, 0.22, 0.16), Paint(shade(color, 1.2)), "neck"))
    shapes += placed(_bird_head(color, bill), angle=rng.uniform(-0.2, 0.3), offset=center)
    if flying:
        near = polygon((-0.16, -0.52), (-0.46, -1.18), (-0.08, -1.06), (0.20, -0.58), (0.05, -0.46))
    else:
        near = ellipse(-0.12, -0.52, 0.30, 0.13, angle=-0.15)
    shapes.append(Shape(near, wing, "wing"))
    return placed(shapes, angle=-0.25) if flying else shapes


def _bird_head(color: Color, bill: Paint) -> list[Shape]:
    return [
        Shape(polygon((0.10, -0.07), (0.38, 0.03), (0.10, 0.08)), bill, "beak"),
        Shape(ellipse(0, 0, 0.165, 0.15), Paint(shade(color, 1.12)), "head"),
        Shape(ellipse(0.06, -0.04, 0.034, 0.036), _EYE, "eye", edge=0.0),
    ]


def person(rng: np.random.Generator) -> list[Shape]:
    """Standing or walking, seen from the front."""
    skin = Paint(pick(rng, _SKINS))
    shirt = Paint(
        pick(rng, _CLOTHES), "stripes" if rng.random() < 0.25 else "plain", pick(rng, _CLOTHES), 7.0, math.pi / 2
    )
    trousers, shoes = Paint(pick(rng, _CLOTHES)), Paint(pick(rng, ((40, 34, 32), (120, 60, 36), (220, 220, 216))))
    shapes: list[Shape] = []
    for side in (-1, 1):
        shapes += _person_leg(side, rng.uniform(0.0, 0.35), trousers, shoes)
    behind = rng.random() < 0.3
    sides = [_arm(side, rng, shirt, skin) for side in (-1, 1)]
    if behind:
        shapes += sides[0]
    chest = polygon((-0.20, -1.02), (0.20, -1.02), (0.25, -0.96), (0.17, -0.50), (-0.17, -0.50), (-0.25, -0.96))
    shapes.append(Shape(chest, shirt, "torso"))
    for arm in sides[int(behind) :]:
        shapes += arm
    shapes.append(Shape(box(-0.075, -1.14, 0.075, -0.99), Paint(shade(skin.color, 0.85)), "neck"))
    face = _person_head(skin, Paint(pick(rng, _HAIRS)), long_hair=bool(rng.random() < 0.45))
    turn = rng.uniform(-0.15, 0.15)
    return shapes + placed(face, angle=turn, scale=rng.uniform(1.0, 1.25), offset=(0.3 * turn, -1.30))


def _person_leg(side: int, spread: float, trousers: Paint, shoes: Paint) -> list[Shape]:
    hip, x = (side * 0.09, -0.55), side * (0.10 + 0.35 * spread)
    knee = (side * 0.12 + 0.2 * side * spread, -0.29)
    return [
        Shape(rounded(x - 0.09 + 0.05 * side, -0.08, x + 0.09 + 0.05 * side, 0.0, power=3), shoes, "foot"),
        Shape(strip([hip, knee, (x, -0.05)], [0.19, 0.14, 0.11]), trousers, "leg"),
    ]


def _arm(side: int, rng: np.random.Generator, shirt: Paint, skin: Paint) -> list[Shape]:
    """Upper arm in the shirt's colour, bare lower arm and hand."""
    down = rng.uniform(0.1, 0.9)
    bend = rng.uniform(-0.4, 1.6)
    shoulder = (side * 0.21, -0.97)
    elbow = (shoulder[0] + side * 0.26 * math.sin(down), shoulder[1] + 0.26 * math.cos(down))
    lower = down + bend
    wrist = (elbow[0] + side * 0.23 * math.sin(lower), elbow[1] + 0.23 * math.cos(lower))
    return [
        Shape(limb(elbow, wrist, 0.095, 0.075), skin, "lower arm"),
        Shape(limb(shoulder, elbow, 0.13, 0.11), Paint(shade(shirt.color, 0.88)), "upper arm"),
        Shape(ellipse(wrist[0] + side * 0.03, wrist[1] + 0.02, 0.062, 0.062), Paint(shade(skin.color, 1.1)), "hand"),
    ]


def _person_head(skin: Paint, hair: Paint, *, long_hair: bool) -> list[Shape]:
    """Seen from the front, about its centre."""
    shapes: list[Shape] = []
    if long_hair:
        shapes.append(Shape(rounded(-0.215, -0.22, 0.215, 0.26, power=2.6), hair, "hair"))
    for side in (-1, 1):
        shapes.append(Shape(ellipse(side * 0.17, 0.01, 0.04, 0.058), Paint(shade(skin.color, 0.9)), "ear"))
    shapes.append(Shape(ellipse(0, 0, 0.165, 0.205), skin, "head"))
    fringe = [(math.cos(t) * 0.18, math.sin(t) * 0.225) for t in np.linspace(math.pi, 2 * math.pi, 12)]
    shapes.append(Shape(polygon(*fringe, (0.10, -0.105), (-0.06, -0.125)), hair, "hair"))
    for side in (-1, 1):
        shapes.append(Shape(ellipse(side * 0.066, -0.015, 0.030, 0.022), Paint((244, 244, 240)), "eye", edge=0.5))
        shapes.append(Shape(ellipse(side * 0.066, -0.015, 0.015, 0.018), _EYE, "eye", edge=0.0))
        brow = strip([(side * 0.03, -0.058), (side * 0.105, -0.065)], [0.026, 0.022])
        shapes.append(Shape(brow, Paint(shade(hair.color, 0.8)), "eyebrow", edge=0.1))
    shapes.append(Shape(polygon((0, -0.02), (0.034, 0.068), (-0.034, 0.068)), Paint(shade(skin.color, 0.78)), "nose"))
    lips = strip(arc_line((-0.062, 0.11), 0.45, 0.13, bend=-0.95), [0.02, 0.036, 0.04, 0.04, 0.036, 0.02])
    shapes.append(Shape(lips, Paint((176, 62, 62)), "mouth", edge=0.2))
    return shapes
