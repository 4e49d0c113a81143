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


# Canvas ---------------------------------------------------------------------------------------------------------------
PLACES = [
    # canvas, offset and region of a 6 x 8 photo; canvases are larger and smaller, photos begin in and outside of them
    ((10, 12), (0, 0), (0, 0, 6, 8)),
    ((10, 12), (3, 2), (3, 2, 6, 8)),
    ((4, 5), (0, 0), (0, 0, 4, 5)),
    ((4, 5), (-2, -3), (0, 0, 4, 5)),
    ((9, 5), (2, -1), (2, 0, 6, 5)),
    ((4, 20), (-1, 15), (0, 15, 4, 5)),
    ((8, 8), (-5, -7), (0, 0, 1, 1)),
]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("canvas", "offset", "region"), PLACES)
def test_photo_labels_and_region_agree_on_a_canvas(canvas, offset, region, flip):
    labels = np.random.default_rng(4).integers(1, 250, (6, 8), dtype=np.uint8)
    geometry = Geometry((0, 0, 8, 6), flip=flip, canvas=canvas, offset=offset, fill=(9, 7, 5))
    expected = np.zeros(canvas, np.uint8)
    for (row, column), label in np.ndenumerate(labels[:, ::-1] if flip else labels):
        y, x = row + offset[0], column + offset[1]
        if 0 <= y < canvas[0] and 0 <= x < canvas[1]:
            expected[y, x] = label
    assert np.array_equal(geometry.labels(labels), expected)
    assert geometry.size == canvas and geometry.resized == (6, 8) and geometry.region == region
    assert np.array_equal(geometry.inside(), expected > 0)
    filled = geometry.labels(labels, fill=255)
    assert (filled[~geometry.inside()] == 255).all()
    assert np.array_equal(filled[geometry.inside()], expected[expected > 0])
    shown = np.asarray(geometry.image(Image.fromarray(np.repeat(labels[:, :, None], 3, axis=2))))
    assert (shown[~geometry.inside()] == [9, 7, 5]).all()
    assert np.array_equal(shown[geometry.inside()][:, 0], expected[geometry.inside()])


def test_a_photo_beside_its_canvas_shows_nothing():
    geometry = Geometry((0, 0, 8, 6), canvas=(4, 4), offset=(10, -20))
    assert geometry.region[2:] == (0, 0) and not geometry.inside().any()
    assert not geometry.labels(np.ones((6, 8), np.uint8)).any()


def test_decoded_masks_are_placed_as_other_arrays():
    """COCO masks are column-major, which `labels` treats on its own."""
    mask = np.random.default_rng(5).random((30, 40)) < 0.5
    for geometry in (
        Geometry((2, 1, 30, 25), ((20, 24),), flip=True),
        Geometry((2, 1, 30, 25), ((20, 24),), flip=True, canvas=(16, 40), offset=(-3, 9)),
    ):
        assert np.array_equal(geometry.labels(np.asfortranarray(mask)), geometry.labels(mask))


# Boxes ----------------------------------------------------------------------------------------------------------------
def rectangle(height, width, box):
    left, top, right, bottom = box
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((0, 0, 40, 30)),
        Geometry((0, 0, 40, 30), ((60, 80),)),
        Geometry((0, 0, 40, 30), ((90, 40),), flip=True),
        Geometry((10, 5, 30, 25)),
        Geometry((10, 5, 30, 25), ((40, 60),), flip=True),
        Geometry((10, 5, 30, 25), ((7, 9), (60, 20)), flip=True),  # the step between changes no place
        Geometry((0, 0, 40, 30), ((60, 80),), canvas=(100, 100), offset=(7, 11)),
        Geometry((0, 0, 40, 30), ((60, 80),), flip=True, canvas=(32, 32), offset=(-9, -21)),
        Geometry((10, 5, 30, 25), ((40, 60),), flip=True, canvas=(33, 90), offset=(-4, 13)),
    ],
)
def test_boxes_are_those_of_the_transformed_masks(geometry):
    if len(geometry.sizes) > 1:
        whole_steps = Geometry(geometry.box, geometry.sizes[-1:], geometry.flip)
    else:
        whole_steps = geometry
    boxes = [(0, 0, 40, 30), (12, 8, 20, 18), (5, 3, 15, 9), (28, 20, 40, 30), (10, 5, 11, 6), (0, 0, 6, 4)]
    found = geometry.boxes(np.array(boxes))
    assert found.shape == (6, 4)
    for box, moved in zip(boxes, found):
        mask = whole_steps.labels(rectangle(30, 40, box))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):  # cut away: no area is left of it
            assert (moved[2] - moved[0]) * (moved[3] - moved[1]) == 0
        else:
            assert moved.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_boxes_between_pixels_keep_their_fractions_and_none_is_none():
    geometry = Geometry((0, 0, 40, 30), ((15, 20),), flip=True, canvas=(20, 20), offset=(1, 0))
    assert geometry.boxes(np.array([[1.0, 2.0, 4.5, 9.0]])).tolist() == [[17.75, 2.0, 19.5, 5.5]]
    assert geometry.boxes(np.zeros((0, 4))).shape == (0, 4)


# What a system wants to see -------------------------------------------------------------------------------------------
def test_squash_fills_the_whole_input():
    geometry = InputSpec((16, 24)).geometry(375, 500)
    assert (geometry.size, geometry.region) == ((16, 24), (0, 0, 16, 24)) and geometry.sizes == ((16, 24),)


def test_via_goes_through_the_short_edge_first():
    for spec, last in ((InputSpec((352, 352), via=(800, 1333)), (352, 352)), (InputSpec((352, 352)), (352, 352))):
        steps = ((800, 1067),) if spec.via else ()
        assert spec.geometry(375, 500).sizes == (*steps, last)
    two = InputSpec((352, 352), resize="letterbox", via=(800, 1333)).geometry(375, 500)
    assert two.sizes == ((800, 1067), (264, 352))
    image = Image.fromarray(np.random.default_rng(6).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    shown = InputSpec((16, 16), via=(20, 25)).geometry(30, 40).image(image)
    assert shown.tobytes() == image.resize((25, 19), 2).resize((16, 16), 2).tobytes()  # 2: bilinear


@pytest.mark.parametrize(
    ("source", "region"),
    [
        ((375, 500), (44, 0, 264, 352)),
        ((500, 375), (0, 44, 352, 264)),
        ((352, 352), (0, 0, 352, 352)),
        ((10, 10), (0, 0, 352, 352)),
        ((1, 1000), (175, 0, 1, 352)),  # never thinner than a pixel
    ],
)
def test_letterbox_fits_and_centres(source, region):
    geometry = InputSpec((352, 352), resize="letterbox", fill=(1, 2, 3)).geometry(*source)
    assert geometry.region == region and geometry.size == (352, 352)
    assert geometry.fill == (1, 2, 3)


def test_letterbox_into_a_wide_input():
    assert InputSpec((100, 400), resize="letterbox").geometry(300, 400).region == (0, 133, 100, 133)


@pytest.mark.parametrize(
    ("source", "divisor", "resized", "size"),
    [
        ((375, 500), 1, (800, 1067), (800, 1067)),
        ((375, 500), 32, (800, 1067), (800, 1088)),
        ((500, 375), 32, (1067, 800), (1088, 800)),
        ((100, 400), 32, (333, 1333), (352, 1344)),
        ((800, 800), 32, (800, 800), (800, 800)),
    ],
)
def test_short_edge_is_filled_up_at_the_bottom_and_the_right(source, divisor, resized, size):
    for given in ((800, 1333), (1333, 800)):
        geometry = InputSpec(given, resize="short_edge", divisor=divisor).geometry(*source)
        assert (geometry.resized, geometry.size, geometry.region) == (resized, size, (0, 0, *resized))


@pytest.mark.parametrize(
    "options", [{"resize": "crop"}, {"size": (0, 8)}, {"size": (8, -1)}, {"divisor": 0, "resize": "short_edge"}]
)
def test_impossible_inputs_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        InputSpec(**{"size": (8, 8), **options})
