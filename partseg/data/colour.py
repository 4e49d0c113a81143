"""Random changes of a photo's colours in training; labels do not notice them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance


def jitter(image: Image.Image, *, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, each times a factor from 1 - strength .. 1 + strength."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(float(rng.uniform(1 - strength, 1 + strength)))
    return image


def ssd_jitter(image: Image.Image, *, rng: np.random.Generator) -> Image.Image:
    """The colour changes of SSD (Liu et al., ECCV 2016, section 2.2), each with even odds, as strong as in detectron2.

    Brightness by up to 32 of 255, contrast and saturation times 0.5 to 1.5, hue by up to a tenth of the circle;
    contrast comes before or after saturation and hue.
    """
    pixels = np.asarray(image, np.float32)
    if rng.random() < 0.5:
        pixels = _bytes(pixels + rng.uniform(-32, 32))
    early = rng.random() < 0.5
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    if early:
        pixels = _bytes(pixels * contrast)
    hsv = np.array(Image.fromarray(pixels.astype(np.uint8)).convert("HSV"), np.float32)
    if rng.random() < 0.5:
        hsv[..., 1] *= rng.uniform(0.5, 1.5)
    if rng.random() < 0.5:
        hsv[..., 0] = (hsv[..., 0] + 256 * rng.uniform(-0.1, 0.1)) % 256
    pixels = np.asarray(Image.fromarray(_bytes(hsv).astype(np.uint8), "HSV").convert("RGB"), np.float32)
    return Image.fromarray(_bytes(pixels if early else pixels * contrast).astype(np.uint8))


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return pixels.clip(0, 255)
