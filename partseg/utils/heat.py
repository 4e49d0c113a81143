"""Maps of where a network looked, as pictures; those that are shown side by side have one scale and its bar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from partseg.utils.visualize import tile

Scale = tuple[float, float]
"""The values that are black and brightest."""


def heat_scale(heats: Sequence[np.ndarray]) -> Scale:
    """The lowest and highest value of maps that are shown side by side."""
    return min(float(heat.min()) for heat in heats), max(float(heat.max()) for heat in heats)


def heat_picture(
    image: UInt8[np.ndarray, "h w 3"], heat: Float[np.ndarray, "r c"], *, scale: Scale
) -> UInt8[np.ndarray, "h w 3"]:
    """The darkened photo, lit in warm colour where `heat` is high on its scale."""
    low, high = scale
    scaled = np.clip((heat - low) / (high - low), 0, 1) if high > low else np.zeros_like(heat)
    size = (image.shape[1], image.shape[0])
    weight = np.asarray(Image.fromarray((255 * scaled).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)) / 255
    return np.rint(np.clip(0.45 * image + _warm(weight), 0, 255)).astype(np.uint8)


def heat_bar(scale: Scale, *, width: int = 240) -> UInt8[np.ndarray, "h w 3"]:
    """The colours of a scale on black, and its lowest and highest value."""
    bar = _warm(np.tile(np.linspace(0, 1, width), (14, 1)))
    caption = f"{scale[0]:.3g} to {scale[1]:.3g}"
    return tile([np.rint(np.clip(bar, 0, 255)).astype(np.uint8)], columns=1, captions=[caption])


def with_heat_bar(sheet: UInt8[np.ndarray, "h w 3"], scale: Scale) -> UInt8[np.ndarray, "h w 3"]:
    """A sheet of heat pictures with the bar of their common scale below."""
    bar = heat_bar(scale, width=min(240, sheet.shape[1]))
    width = max(sheet.shape[1], bar.shape[1])
    rows = [np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), constant_values=255) for x in (sheet, bar)]
    return np.concatenate(rows)


def _warm(weight: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    return 0.75 * np.stack([255 * np.minimum(1, 2 * weight), 255 * weight**1.5, 60 * weight**3], -1)
