"""What toy objects have in common: every part name and every object has a colour that tints whatever is drawn of it.

A dog's leg and a horse's leg look alike in photographs too. It makes the world easy enough for a small network from
random weights in the minutes that a quickstart has.
"""

from __future__ import annotations

import colorsys
from dataclasses import replace

from partseg.vocabulary.names import Vocabulary
from toy_world.shapes import Color, Shape

PART_SHARE, OBJECT_SHARE = 0.65, 0.25
"""How much of a part's colour its name and its object decide; the rest is the drawing's own (coat, paint, cloth)."""


class Palette:
    """The colours of a vocabulary's part names and objects."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._parts = {name: _spread(i, 0.10) for i, name in enumerate(vocabulary.parts)}
        self._objects = {name: _spread(i, 0.33) for i, name in enumerate(vocabulary.objects)}

    def tint(self, shape: Shape, object_name: str) -> Shape:
        """The shape in the colours of its part and object; shapes without a part keep their own."""
        if shape.part is None:
            return shape
        part, obj = self._parts[shape.part], self._objects[object_name]

        def mixed(own: Color) -> Color:
            rest = 1 - PART_SHARE - OBJECT_SHARE
            red, green, blue = (PART_SHARE * p + OBJECT_SHARE * o + rest * c for p, o, c in zip(part, obj, own))
            return red, green, blue

        paint = replace(shape.paint, color=mixed(shape.paint.color), accent=mixed(shape.paint.accent))
        return replace(shape, paint=paint)


def _spread(index: int, offset: float) -> Color:
    """Colour number `index` of a sequence without end, by Roberts' R3, which fills the cube of colours evenly."""
    hue, saturation, value = ((index * step + offset) % 1 for step in (0.8191725, 0.6710436, 0.5497005))
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * saturation, 0.4 + 0.58 * value)
    return 255 * red, 255 * green, 255 * blue
