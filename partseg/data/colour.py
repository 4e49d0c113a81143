"""Random changes of a photo's colours in training; labels do not notice them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance


def jitter(image: Image.Image, *, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, each times a factor from 1 - strength .. 1 + strength."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(float(rng.uniform(1 - strength, 1 + strength)))
    return image
