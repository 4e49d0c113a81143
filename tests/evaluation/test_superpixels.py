"""Cuts without a network: regions fill each object and nothing else; each method, where installed."""

import numpy as np
import pytest

from partseg.evaluation.superpixels import GRID, NormalisedCut, cut, title


def picture():
    """A red and a blue half with some noise, and two objects: a square across both halves, and a single pixel."""
    image = np.random.default_rng(0).integers(0, 12, (40, 60, 3), dtype=np.uint8)
    image[:, :30, 0] += 200
    image[:, 30:, 2] += 200
    square, dot = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    square[8:32, 16:44], dot[0, 0] = True, True
    return image, square, dot


def halves(image, mask):
    """The simplest way to cut."""
    return np.repeat(np.arange(60)[None] // 30, 40, axis=0)


def test_regions_of_each_object_fill_it():
    image, square, dot = picture()
    found = cut(halves, image, [square, dot])
    assert len(found) == 3 and found.scores.tolist() == [1.0, 0.5, 0.5] and (found.label == -1).all()
    assert np.array_equal(found.masks().sum(0), square | dot)
    assert len(cut(halves, image, [])) == 0


def test_names_of_the_grid_differ():
    names = [title(method) for method in GRID]
    assert len(set(names)) == len(GRID) == 11 and "slic_num_segments_25" in names and "felzenszwalb_scale_300" in names


@pytest.mark.parametrize("method", GRID, ids=title)
def test_a_method_finds_the_two_halves(method):
    pytest.importorskip("skimage", reason="superpixels are scikit-image's (pip install scikit-image)")
    image, square, dot = picture()
    found = cut(method, image, [square, dot])
    assert np.array_equal(found.masks().sum(0), square | dot)
    half = square & (np.arange(60) < 30)
    of_square = [mask for mask in found.masks() if (mask & square).any()]
    if len(of_square) == 1 and isinstance(method, NormalisedCut):
        return  # no cut of its graph was cheap enough
    assert len(of_square) >= 2 and all(max((m & half).sum(), (m & ~half).sum()) > 0.9 * m.sum() for m in of_square)
