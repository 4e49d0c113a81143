import numpy as np
import pytest
from PIL import Image

from partseg.geometry import Geometry, InputSpec, random_box, short_edge, to_tensor

SIZES = [((375, 500), (352, 352)), ((30, 41), (7, 9)), ((5, 5), (12, 31)), ((1, 9), (3, 3))]


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_labels_are_the_nearest_pixels_that_pillow_takes(source, target, dtype):
    height, width = source
    labels = np.random.default_rng(0).integers(0, 200, source).astype(dtype)
    ours = Geometry((0, 0, width, height), (target,)).labels(labels)
    image = Image.fromarray(labels.astype(np.uint8))
    pillow = np.asarray(image.resize(target[::-1], Image.Resampling.NEAREST))
    assert ours.dtype == labels.dtype and np.array_equal(ours.astype(np.uint8), pillow)


def test_labels_follow_two_resizes_crop_and_flip_like_pillow():
    labels = np.random.default_rng(1).integers(0, 255, (40, 60), dtype=np.uint8)
    ours = Geometry((3, 5, 47, 33), ((80, 126), (16, 16)), flip=True).labels(labels)
    step = Image.fromarray(labels).crop((3, 5, 47, 33)).resize((126, 80), Image.Resampling.NEAREST)
    step = step.resize((16, 16), Image.Resampling.NEAREST).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(ours, np.asarray(step))


def test_image_and_labels_stay_aligned():
    """A photo whose colour is its label: after any geometry the colours are the labels wherever blocks are flat."""
    labels = np.kron(np.random.default_rng(2).integers(0, 250, (4, 4)), np.ones((32, 32))).astype(np.uint8)
    image = Image.fromarray(np.repeat(labels[:, :, None], 3, axis=2))
    for geometry in (
        Geometry((0, 0, 128, 128), ((64, 64),), flip=True),
        Geometry((32, 0, 128, 64), ((64, 96),), flip=False),
        Geometry((0, 32, 96, 128), ((200, 200), (48, 48)), flip=True),
    ):
        shown = np.asarray(geometry.image(image))[:, :, 0]
        taken = geometry.labels(labels)
        assert shown.shape == taken.shape
        assert (shown == taken).mean() > 0.7  # the rest lies on the blurred edges of the blocks


def test_no_sizes_keep_the_crop():
    labels = np.arange(12).reshape(3, 4)
    geometry = Geometry((1, 0, 3, 2))
    assert np.array_equal(geometry.labels(labels), labels[0:2, 1:3])
    assert geometry.image(Image.new("RGB", (4, 3))).size == (2, 2)


@pytest.mark.parametrize(
    ("height", "width", "long_edge", "expected"),
    [(375, 500, 1333, (800, 1067)), (500, 375, None, (1067, 800)), (100, 400, 1333, (333, 1333))],
)
def test_short_edge(height, width, long_edge, expected):
    assert short_edge(height, width, 800, long_edge) == expected


def test_random_box_stays_inside_and_is_reproducible():
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(200):
        box = random_box(30, 50, scale=(0.3, 1.0), ratio=(0.5, 2.0), rng=rng)
        assert box == random_box(30, 50, scale=(0.3, 1.0), ratio=(0.5, 2.0), rng=again)
        left, top, right, bottom = box
        assert 0 <= left < right <= 50 and 0 <= top < bottom <= 30
    assert random_box(30, 50, scale=None, ratio=(1, 1), rng=rng) == (0, 0, 50, 30)


def test_channel_order():
    image = Image.new("RGB", (2, 2), (1, 2, 3))
    assert to_tensor(image, channel_order="rgb")[:, 0, 0].tolist() == [1, 2, 3]
    assert to_tensor(image, channel_order="bgr")[:, 0, 0].tolist() == [3, 2, 1]
