"""Colour changes of training: what they may do, and that they are drawn from the given generator alone."""

import numpy as np
import pytest
from PIL import Image

from partseg.data.colour import ssd_jitter
from partseg.data.mapper import TrainMapper

GREY = Image.fromarray(np.full((4, 4, 3), 100, np.uint8))


def test_ssd_jitter_stays_within_its_strengths():
    """A grey picture stays grey, between the darkest and the brightest that brightness and contrast allow."""
    seen = [np.asarray(ssd_jitter(GREY, rng=np.random.default_rng(seed))) for seed in range(200)]
    levels = np.array([each[0, 0] for each in seen])
    assert (levels.max(1) == levels.min(1)).all()
    assert levels.min() >= (100 - 32) // 2 and levels.max() <= 198
    assert (levels == 100).any() and len(np.unique(levels)) > 50


def test_ssd_jitter_turns_the_hue_by_a_tenth_of_the_circle_at_most():
    red = Image.fromarray(np.broadcast_to(np.array([200, 60, 60], np.uint8), (2, 2, 3)).copy())
    hues = [np.asarray(ssd_jitter(red, rng=np.random.default_rng(s)).convert("HSV"))[0, 0, 0] for s in range(200)]
    turned = (np.array(hues, int) + 128) % 256 - 128
    assert abs(turned).max() <= 27 and turned.min() < -15 and turned.max() > 15


def test_ssd_jitter_is_a_function_of_its_generator():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    one, again, other = (np.asarray(ssd_jitter(noise, rng=np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()


@pytest.mark.parametrize("jitter", [1.0, -0.1, "hsv"])
def test_a_jitter_that_there_is_not_is_refused(jitter):
    with pytest.raises(ValueError, match=r"jitter=.*nor 'ssd'"):
        TrainMapper(jitter=jitter)
