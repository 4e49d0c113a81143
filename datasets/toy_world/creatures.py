"""The toy's quadrupeds: five species of one body plan, seen from the side or from the front."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from toy_world.shapes import (
    Color,
    Paint,
    Pattern,
    Points,
    Shape,
    arc_line,
    cloud,
    ellipse,
    limb,
    pick,
    placed,
    polygon,
    rounded,
    shade,
    strip,
)

_EYE = Paint((20, 18, 16))
_NOSE = Paint((35, 28, 28))
_PINK = Paint((214, 150, 145))


@dataclass(frozen=True)
class Species:
    """Proportions (body length = 1) and looks of a quadruped."""

    name: str
    depth: float
    leg: tuple[float, float]
    """Length, width."""
    neck: tuple[float, float, float]
    """Length, width, angle above the horizontal in radians."""
    head: tuple[float, float]
    """Half axes."""
    muzzle: tuple[float, float] | None
    """Length, width; None: a flat face."""
    ears: Literal["pointed", "floppy", "leaf"]
    tail: tuple[float, float, float, float]
    """Length, width at the root, angle (0 = straight back, positive up), bend."""
    foot: Literal["paw", "hoof"] | None
    nose: bool
    horns: Literal["curved", "curled"] | None
    coats: tuple[tuple[Color, Color], ...]
    pattern: Pattern = "plain"
    face: tuple[Color, ...] = ()
    """Colours of head and legs where they differ from the coat."""


CAT = Species(
    name="cat",
    depth=0.36,
    leg=(0.36, 0.11),
    neck=(0.10, 0.24, 0.7),
    head=(0.20, 0.19),
    muzzle=None,
    ears="pointed",
    tail=(0.75, 0.08, 1.1, -1.0),
    foot="paw",
    nose=True,
    horns=None,
    coats=(((222, 140, 62), (176, 92, 30)), ((140, 140, 146), (84, 84, 92)), ((62, 58, 60), (40, 38, 40))),
    pattern="stripes",
)
DOG = Species(
    name="dog",
    depth=0.34,
    leg=(0.50, 0.12),
    neck=(0.20, 0.20, 0.8),
    head=(0.19, 0.16),
    muzzle=(0.20, 0.15),
    ears="floppy",
    tail=(0.45, 0.09, 0.9, -0.6),
    foot="paw",
    nose=True,
    horns=None,
    coats=(((196, 150, 92), (240, 225, 196)), ((120, 78, 46), (90, 56, 32)), ((232, 222, 204), (150, 96, 52))),
    pattern="patches",
)
COW = Species(
    name="cow",
    depth=0.50,
    leg=(0.42, 0.13),
    neck=(0.18, 0.30, 0.4),
    head=(0.20, 0.17),
    muzzle=(0.17, 0.20),
    ears="leaf",
    tail=(0.55, 0.05, -1.3, -0.3),
    foot=None,
    nose=False,
    horns="curved",
    coats=(((238, 234, 226), (40, 36, 36)), ((150, 86, 50), (240, 230, 214)), ((60, 48, 44), (236, 230, 220))),
    pattern="patches",
)
HORSE = Species(
    name="horse",
    depth=0.36,
    leg=(0.62, 0.11),
    neck=(0.46, 0.22, 1.0),
    head=(0.17, 0.13),
    muzzle=(0.24, 0.13),
    ears="pointed",
    tail=(0.55, 0.14, -0.9, -0.5),
    foot="hoof",
    nose=False,
    horns=None,
    coats=(((128, 72, 38), (100, 54, 28)), ((92, 56, 36), (60, 36, 24)), ((206, 198, 188), (160, 152, 146))),
    pattern="grain",
)
SHEEP = Species(
    name="sheep",
    depth=0.50,
    leg=(0.30, 0.09),
    neck=(0.12, 0.24, 0.5),
    head=(0.16, 0.14),
    muzzle=(0.13, 0.13),
    ears="leaf",
    tail=(0.16, 0.12, -0.6, -0.4),
    foot=None,
    nose=False,
    horns="curled",
    coats=(((238, 232, 216), (196, 188, 170)), ((214, 202, 180), (170, 158, 138))),
    pattern="wool",
    face=((58, 52, 50), (226, 214, 192)),
)


@dataclass(frozen=True)
class _Coat:
    body: Paint
    head: Paint
    limbs: Paint
    far: Paint
    inner: Paint
    hair: Paint


def quadruped(species: Species, rng: np.random.Generator) -> list[Shape]:
    """One animal, from the side two times in three."""
    coat = _coat(species, rng)
    if rng.random() < 0.66:
        return _side_view(species, coat, rng)
    return _front_view(species, coat, rng)


def _coat(species: Species, rng: np.random.Generator) -> _Coat:
    base, accent = species.coats[int(rng.integers(len(species.coats)))]
    base, accent = pick(rng, [base]), pick(rng, [accent])
    pattern = species.pattern if rng.random() < 0.75 or species.pattern == "wool" else "plain"
    body = Paint(base, pattern, accent, period=rng.uniform(6, 11), angle=rng.uniform(-0.5, 0.5))
    limb_color = pick(rng, species.face) if species.face else base
    marks: Pattern = "plain" if species.face else pattern
    # The same shading on every species: parts of an unseen animal look like the parts of the seen ones.
    head = Paint(shade(limb_color, 1.15), marks, accent, body.period, body.angle)
    limbs = Paint(shade(limb_color, 0.78), marks, shade(accent, 0.78), body.period, body.angle)
    return _Coat(body, head, limbs, Paint(shade(limb_color, 0.55)), Paint(shade(accent, 0.9)), Paint(shade(base, 0.45)))


# ---- from the side -------------------------------------------------------------------------------------------------
def _side_view(species: Species, coat: _Coat, rng: np.random.Generator) -> list[Shape]:
    length, depth = species.leg[0], species.depth
    back = -length - depth
    stride = rng.uniform(-0.3, 0.3)
    hips, shoulders = (-0.40, back + 0.72 * depth), (0.38, back + 0.72 * depth)
    shapes = _leg(species, hips, stride + 0.25, coat.far) + _leg(species, shoulders, -stride - 0.2, coat.far)
    shapes += _tail(species, coat, (-0.48, back + 0.25 * depth), rng)
    shapes.append(Shape(_torso(species, back, rng), coat.body, "torso"))
    shapes += _leg(species, hips, -stride, coat.limbs) + _leg(species, shoulders, stride, coat.limbs)
    lift = species.neck[2] + rng.uniform(-0.9, 0.25)
    reach = species.neck[0] + 0.12
    root = (0.40, back + 0.3 * depth)
    top = (root[0] + reach * math.cos(lift), root[1] - reach * math.sin(lift))
    shapes.append(Shape(limb(root, top, species.neck[1] * 1.25, species.neck[1] * 0.8), coat.body, "neck"))
    if species.name == "horse":
        mane = [(root[0] - 0.10, root[1] - 0.06), (top[0] - 0.10, top[1] - 0.02)]
        shapes.append(Shape(strip(mane, [0.08, 0.08]), coat.hair, "neck"))
    tilt = rng.uniform(-0.15, 0.35) + 0.4 * max(0.0, species.neck[2] - lift)
    head = _profile(species, coat, two_eyes=bool(rng.random() < 0.3))
    return shapes + placed(head, angle=tilt, offset=(top[0] + 0.05, top[1]))


def _torso(species: Species, back: float, rng: np.random.Generator) -> Points:
    middle = back + species.depth / 2
    if species.name == "sheep":
        return cloud(0, middle, 0.58, species.depth * 0.56, rng)
    power = 3.2 if species.name == "cow" else 2.5
    return rounded(-0.54, back, 0.54, back + species.depth, power=power)


def _leg(species: Species, hip: tuple[float, float], swing: float, paint: Paint) -> list[Shape]:
    """A leg that reaches the ground, bent at the knee, with the foot the species has."""
    width, drop = species.leg[1], -hip[1]
    foot = (hip[0] + drop * math.sin(swing) * 0.6, -0.03)
    knee = (hip[0] + 0.45 * (foot[0] - hip[0]) + 0.04 * math.copysign(1, hip[0]), hip[1] + 0.55 * drop)
    shapes = [Shape(strip([hip, knee, foot], [width * 1.5, width, width * 0.75]), paint, "leg")]
    if species.foot == "paw":
        shapes.append(
            Shape(ellipse(foot[0] + 0.03, -0.035, width * 0.75, 0.05), Paint(shade(paint.color, 1.18)), "paw")
        )
    elif species.foot == "hoof":
        x = foot[0]
        hoof = polygon((x - 0.05, -0.10), (x + 0.05, -0.10), (x + 0.085, 0.0), (x - 0.065, 0.0))
        shapes.append(Shape(hoof, Paint((48, 42, 40)), "hoof"))
    return shapes


def _tail(species: Species, coat: _Coat, root: tuple[float, float], rng: np.random.Generator) -> list[Shape]:
    length, width, angle, bend = species.tail
    path = arc_line(root, math.pi + angle + rng.uniform(-0.35, 0.35), length, bend=-bend + rng.uniform(-0.5, 0.5))
    if species.name == "horse":
        return [
            Shape(strip(path, np.interp(range(6), [0, 3, 5], [width * 0.6, width, width * 0.3])), coat.hair, "tail")
        ]
    shapes = [Shape(strip(path, np.linspace(width, width * 0.6, 6)), coat.body, "tail")]
    if species.name == "cow":
        shapes.append(Shape(ellipse(*path[-1], 0.05, 0.07), coat.hair, "tail"))
    return shapes


def _profile(species: Species, coat: _Coat, *, two_eyes: bool) -> list[Shape]:
    """The head seen from its right side, about the centre of the skull."""
    rx, ry = species.head
    skin = coat.head
    shapes = _ear(species, (-0.05 * rx, -0.75 * ry), coat.far, side=0.35)
    if species.horns:
        shapes += _horn(species, (0.25 * rx, -0.8 * ry), side=0.4)
    shapes.append(Shape(ellipse(0, 0, rx, ry), skin, "head"))
    if species.muzzle:
        length, width = species.muzzle
        tip = (0.55 * rx + length, 0.50 * ry)
        paint = _PINK if species.name == "cow" else Paint(shade(skin.color, 0.86 if species.face == () else 1.2))
        shapes.append(Shape(limb((0.62 * rx, 0.22 * ry), tip, width * 1.15, width * 0.9), paint, "muzzle"))
        nostril = (tip[0] + width * 0.3, tip[1] - width * 0.18)
    else:
        nostril = (0.93 * rx, 0.12 * ry)
    if species.nose:
        shapes.append(Shape(ellipse(*nostril, 0.052, 0.045), _NOSE, "nose"))
    shapes += [Shape(ellipse(0.30 * rx, -0.22 * ry, 0.042, 0.046), _EYE, "eye")]
    if two_eyes:
        shapes.append(Shape(ellipse(0.78 * rx, -0.22 * ry, 0.03, 0.042), _EYE, "eye"))
    shapes += _ear(species, (-0.42 * rx, -0.72 * ry), coat.inner if species.ears == "floppy" else skin, side=-0.35)
    if species.horns:
        shapes += _horn(species, (-0.05 * rx, -0.85 * ry), side=-0.3)
    return shapes


# ---- from the front ------------------------------------------------------------------------------------------------
def _front_view(species: Species, coat: _Coat, rng: np.random.Generator) -> list[Shape]:
    """Sitting or standing towards the viewer: the face is large, the torso is behind the legs."""
    length, depth = species.leg[0], species.depth
    half = 0.60 * depth
    top = -length - 1.25 * depth
    shapes: list[Shape] = []
    if species.tail[2] > 0 or rng.random() < 0.5:
        side = rng.choice([-1.0, 1.0])
        path = arc_line((side * half * 0.8, -0.12 - 0.4 * length), -0.6 if side > 0 else math.pi + 0.6, 0.5, bend=-side)
        shapes.append(Shape(strip(path, np.linspace(species.tail[1], 0.05, 6)), coat.body, "tail"))
    torso = cloud(0, (top - 0.3 * length) / 2, half * 1.1, (-top) / 2, rng) if species.name == "sheep" else None
    if torso is None:
        torso = rounded(-half, top, half, -0.25 * length, power=2.4)
    shapes.append(Shape(torso, coat.body, "torso"))
    for side in (-1, 1):
        shapes += placed(_leg(species, (0.0, -length * 1.15), 0.0, coat.limbs), offset=(side * half * 0.55, 0.0))
    rise = 0.55 * species.neck[0] + 0.10
    center = (rng.uniform(-0.05, 0.05), top - rise)
    shapes.append(Shape(limb((0, top + 0.10), center, species.neck[1] * 1.5, species.neck[1] * 1.1), coat.body, "neck"))
    return shapes + placed(_face(species, coat), scale=1.25, angle=rng.uniform(-0.2, 0.2), offset=center)


def _face(species: Species, coat: _Coat) -> list[Shape]:
    rx, ry = max(0.15, species.head[1] * 1.05), species.head[0] * 0.95
    skin = coat.head
    shapes: list[Shape] = []
    for side in (-1.0, 1.0):
        shapes += _ear(
            species, (side * 0.62 * rx, -0.70 * ry), coat.inner if species.ears == "floppy" else skin, side=side
        )
        if species.horns:
            shapes += _horn(species, (side * 0.40 * rx, -0.85 * ry), side=side)
    shapes.append(Shape(ellipse(0, 0, rx, ry), skin, "head"))
    if species.muzzle:
        paint = _PINK if species.name == "cow" else Paint(shade(skin.color, 0.86 if species.face == () else 1.2))
        drop = species.muzzle[0] * 0.55
        shapes.append(Shape(ellipse(0, 0.55 * ry + drop * 0.6, species.muzzle[1] * 0.72, drop + 0.05), paint, "muzzle"))
    if species.nose:
        shapes.append(Shape(ellipse(0, 0.42 * ry, 0.048, 0.036), _NOSE, "nose"))
    for side in (-1.0, 1.0):
        shapes.append(Shape(ellipse(side * 0.45 * rx, -0.12 * ry, 0.038, 0.045), _EYE, "eye"))
    return shapes


# ---- what grows on a head ------------------------------------------------------------------------------------------
def _ear(species: Species, root: tuple[float, float], paint: Paint, *, side: float) -> list[Shape]:
    """One ear; `side` says how far, and to which side, it leans."""
    x, y = root
    lean = math.copysign(1.0, side)
    if species.ears == "pointed":
        tall = 0.17 if species.name == "cat" else 0.14
        ear = polygon((x - 0.075, y + 0.05), (x + 0.05 * side, y - tall), (x + 0.075, y + 0.05))
        return [Shape(ear, paint, "ear")]
    if species.ears == "floppy":
        return [Shape(ellipse(x + 0.04 * lean, y + 0.13, 0.065, 0.145, angle=-0.25 * lean), paint, "ear")]
    return [Shape(ellipse(x + 0.09 * lean, y + 0.05, 0.10, 0.05, angle=0.35 * lean), paint, "ear")]


def _horn(species: Species, root: tuple[float, float], *, side: float) -> list[Shape]:
    lean = math.copysign(1.0, side)
    if species.horns == "curled":
        path = arc_line(root, -math.pi / 2 + 0.9 * lean, 0.36, bend=3.6 * lean)
        return [
            Shape(strip(path, np.linspace(0.08, 0.045, 6)), Paint((150, 128, 96), "stripes", (110, 90, 62), 4), "horn")
        ]
    path = arc_line(root, -math.pi / 2 + 0.8 * lean, 0.24, bend=-1.3 * lean)
    return [Shape(strip(path, np.linspace(0.07, 0.02, 6)), Paint((226, 214, 178)), "horn")]
