"""One toy picture: which objects it shows, where they stand, and the labels that come with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from partseg.vocabulary.names import Vocabulary
from toy_world import creatures, figures, machines, things, vehicles
from toy_world.backdrop import draw_backdrop, draw_foreground
from toy_world.palette import Palette
from toy_world.shapes import NO_LABEL, Canvas, Points, Shape, bounds, placed

Builder = Callable[[np.random.Generator], list[Shape]]

BUILDERS: dict[str, Builder] = {
    "aeroplane": machines.aeroplane,
    "bicycle": machines.bicycle,
    "bird": figures.bird,
    "boat": things.boat,
    "bottle": things.bottle,
    "bus": vehicles.bus,
    "car": vehicles.car,
    "cat": partial(creatures.quadruped, creatures.CAT),
    "chair": things.chair,
    "cow": partial(creatures.quadruped, creatures.COW),
    "diningtable": things.diningtable,
    "dog": partial(creatures.quadruped, creatures.DOG),
    "horse": partial(creatures.quadruped, creatures.HORSE),
    "motorbike": machines.motorbike,
    "person": figures.person,
    "pottedplant": things.pottedplant,
    "sheep": partial(creatures.quadruped, creatures.SHEEP),
    "sofa": things.sofa,
    "train": machines.train,
    "tvmonitor": things.tvmonitor,
}
"""How each object of Pascal-Part-116's label files is drawn."""


_AIRBORNE = frozenset({"aeroplane"})
_CLOSE_UP = 0.2
"""Share of the pictures that show one object only, larger than the picture."""
_COMPANY = (0.85, 0.12, 0.03)
"""How often none, one or two further objects stand beside the subject of the other pictures."""
_HAZE = 0.85
"""How far backdrops fade to a light grey. Objects stand out as in a photograph with a shallow depth of field."""
_LEAST_AREA, _MOST_GROWTH = 0.012, 1.8
"""Parts smaller than this share of the square around their object are drawn larger, each side up to so many times: toys
have big eyes. At 64 x 64 pixels the eyes of a picture cover 24 pixels instead of 8 (medians over validation)."""


@dataclass(frozen=True)
class Picture:
    """An image [S, S, 3] and its label maps [S, S] in the ids of Pascal-Part-116's files."""

    image: NDArray[np.uint8]
    part: NDArray[np.uint8]
    object: NDArray[np.uint8]


class SceneArtist:
    """Draws pictures of the vocabulary's objects; a picture depends on size and generator alone."""

    def __init__(self, vocabulary: Vocabulary, *, size: int) -> None:
        self.size = size
        self._objects = vocabulary.label_objects
        self._with_parts = vocabulary.objects
        self._object_ids = {name: index for index, name in enumerate(self._objects)}
        self._part_ids = {pair: index for index, pair in enumerate(vocabulary.pairs)}
        self._palette = Palette(vocabulary)

    def draw(self, rng: np.random.Generator, *, subject: str | None = None) -> Picture:
        """A picture with one to three objects; `subject` is surely among them, drawn large."""
        canvas = Canvas(self.size, rng)
        horizon = draw_backdrop(canvas, rng)
        _fade(canvas.image)
        subject = str(rng.choice(self._with_parts)) if subject is None else subject
        for name, shapes in self._arranged(subject, horizon, rng):
            self._paint(canvas, name, shapes)
        if rng.random() < 0.25:
            draw_foreground(canvas, rng)
        return Picture(_photograph(canvas.image, rng), canvas.part, canvas.object)

    def _arranged(self, subject: str, horizon: float, rng: np.random.Generator) -> list[tuple[str, list[Shape]]]:
        """Objects from back to front, each placed on the ground of the picture."""
        if rng.random() < _CLOSE_UP:
            return [(subject, self._placed(subject, rng.uniform(0.35, 0.65), None, rng.uniform(1.2, 1.6), rng))]
        num_others = int(rng.choice(3, p=_COMPANY))
        names = [subject, *(str(rng.choice(self._objects)) for _ in range(num_others))]
        reach = rng.uniform(0.80, 1.05) if num_others == 0 else rng.uniform(0.62, 0.90)
        center = 0.5 + rng.uniform(-0.12, 0.12) * (1 + num_others)
        side = 1 if center < 0.5 else -1
        arranged = []
        for order, name in enumerate(names):
            if order:
                reach = rng.uniform(0.38, 0.66)
                center = 0.5 + side * rng.uniform(0.12, 0.45)
                side = -side
            base = min(rng.uniform(0.93, 1.0), max(horizon + 0.12, 0.5) + 0.38 * reach + rng.uniform(0.0, 0.14))
            if name in _AIRBORNE:
                base -= rng.uniform(0.0, 0.5)
            arranged.append((base, name, self._placed(name, center, base, reach, rng)))
        arranged.sort(key=lambda entry: entry[0])
        return [(name, shapes) for _, name, shapes in arranged]

    def _placed(
        self, name: str, center: float, base: float | None, reach: float, rng: np.random.Generator
    ) -> list[Shape]:
        """The object in pixels: mirrored or not, stretched and tilted a little, its longer side `reach` of the picture.

        `base` is where it stands, as a share of the picture from the top; None: its top is just inside the picture.
        """
        shapes = BUILDERS[name](rng)
        x0, y0, x1, y1 = bounds(shapes)
        side = max(x1 - x0, y1 - y0)
        shapes = _grown(shapes, least=_LEAST_AREA * side**2)
        unit = reach * self.size / side
        mirror = float(rng.choice((-1.0, 1.0)))
        scale = (mirror * unit * rng.uniform(0.9, 1.1), unit * rng.uniform(0.9, 1.1))
        foot = rng.uniform(0.04, 0.12) * self.size - y0 * scale[1] if base is None else base * self.size
        offset = (center * self.size - (x0 + x1) / 2 * scale[0], foot)
        return placed(shapes, angle=rng.normal(0, 0.05), scale=scale, offset=offset)

    def _paint(self, canvas: Canvas, name: str, shapes: Sequence[Shape]) -> None:
        for shape in shapes:
            label = NO_LABEL if shape.part is None else self._part_ids[name, shape.part]
            canvas.paint(self._palette.tint(shape, name), part_label=label, object_label=self._object_ids[name])


def _fade(image: NDArray[np.float32]) -> None:
    """Mix the picture [S, S, 3] with a light version of its greys, in place."""
    image += _HAZE * ((image.mean(axis=-1, keepdims=True) + 200) / 2 - image)


def _grown(shapes: Sequence[Shape], *, least: float) -> list[Shape]:
    """Parts whose largest shape has less than `least` area drawn larger, each shape about its own middle."""
    largest: dict[str, float] = {}
    for shape in shapes:
        if shape.part is not None:
            largest[shape.part] = max(largest.get(shape.part, 1e-9), _area(shape.points))
    return [shape if shape.part is None else _scaled(shape, least / largest[shape.part]) for shape in shapes]


def _scaled(shape: Shape, growth: float) -> Shape:
    """The shape with up to `growth` times its area, about the middle of its box; growth below one leaves it alone."""
    factor = float(np.clip(growth**0.5, 1, _MOST_GROWTH))
    middle = (shape.points.min(0) + shape.points.max(0)) / 2
    return replace(shape, points=middle + (shape.points - middle) * factor)


def _area(points: Points) -> float:
    """Of a simple polygon (shoelace formula)."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _photograph(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """White balance, exposure and sensor noise."""
    gain = np.float32(rng.uniform(0.95, 1.05) * rng.uniform(0.98, 1.02, 3))
    noisy = image * gain + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 7))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
