"""Bands against erosion of each class's mask; detectron2's rule against a literal restatement; hand-made cases."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from partseg.evaluation import boundary, metrics
from partseg.vocabulary.names import Vocabulary


def random_labels(rng, height, width, num_classes):
    coarse = rng.integers(0, num_classes + 1, (-(-height // 9), -(-width // 7)))
    labels = np.kron(coarse, np.ones((9, 7), int))[:height, :width]
    noise = rng.random(labels.shape) < 0.02
    return np.where(noise, rng.integers(0, num_classes + 1, labels.shape), labels)


def direct_band(mask, d):
    """Cheng et al.: the mask minus its erosion; outside the image is not the mask."""
    return mask & ~binary_erosion(mask, np.ones((2 * d + 1, 2 * d + 1)), border_value=0)


@pytest.mark.parametrize("size", [(40, 60), (90, 120), (7, 5), (1, 30), (200, 3)])
def test_bands_equal_the_definition_per_class(size):
    rng = np.random.default_rng(0)
    truth, labels = random_labels(rng, *size, 5), random_labels(rng, *size, 5)
    d = boundary.distance(size)
    counts = boundary.count_bands(truth, labels, 5)
    for c in range(5):
        a, b = direct_band(truth == c, d), direct_band(labels == c, d)
        assert counts[:, c].tolist() == [(a & b).sum(), a.sum(), b.sum()]
    iou = boundary.band_iou(counts)
    for c in range(5):
        union = counts[1, c] + counts[2, c] - counts[0, c]
        assert np.isnan(iou[c]) if union == 0 else iou[c] == counts[0, c] / union


def test_distance_is_two_percent_of_the_diagonal_and_at_least_one():
    assert boundary.distance((375, 500)) == 12  # 0.02 * 625 = 12.5, rounded to even
    assert boundary.distance((300, 400)) == 10
    assert boundary.distance((10, 10)) == 1


def test_a_band_around_a_square_by_hand():
    labels = np.ones((30, 30), int)
    labels[10:20, 10:20] = 0
    band = boundary.band(labels)
    assert boundary.distance((30, 30)) == 1
    assert band[labels == 0].sum() == 36  # a 10 x 10 square without its 8 x 8 middle
    # the rest: one pixel around the square, and one along the border of the image
    assert band[labels == 1].sum() == 12 * 12 - 10 * 10 + (30 * 30 - 28 * 28)


def erode_once(labels):
    """Grey-value erosion by 3 x 3, pixels outside the array do not count (OpenCV's default border)."""
    padded = np.pad(labels, 1, constant_values=np.iinfo(labels.dtype).max)
    height, width = labels.shape
    return np.min([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], 0)


def restated(labels):
    """detectron2's SemSegEvaluator._mask_to_boundary: one ring of zeros, `dilation` erosions by 3 x 3, difference."""
    height, width = labels.shape
    dilation = max(1, int(round(0.02 * np.sqrt(height**2 + width**2))))
    eroded = np.pad(labels.astype(np.uint8), 1)
    for _ in range(dilation):
        eroded = erode_once(eroded)
    return (labels - eroded[1:-1, 1:-1]).astype(np.int64)


@pytest.mark.parametrize("size", [(40, 60), (120, 90), (5, 4), (1, 20)])
def test_detectron2s_rule_equals_its_restatement(size):
    rng = np.random.default_rng(1)
    labels = random_labels(rng, *size, 20)
    np.testing.assert_array_equal(boundary.grey_difference(labels), restated(labels))


@pytest.mark.parametrize("given_objects", [True, False])
@pytest.mark.parametrize("rule", boundary.D2_RULES)
def test_the_authors_counts_go_record_by_record(rule, given_objects):
    """One record per object of the image. d75a599: outside a given object the prediction is K; background is no class.
    d92df57: outside the record's labels the prediction is K; under Pred-All background is a class of the unseen mean.
    """
    rng = np.random.default_rng(2)
    classes = 6
    objects = random_labels(rng, 50, 40, 2)
    objects[objects == 2] = 65534
    truth = np.where(objects == 65534, classes, rng.integers(0, 3, objects.shape) + 3 * (objects == 1))
    truth[rng.random(truth.shape) < 0.2] = classes
    labels = random_labels(rng, 50, 40, classes)
    expected = np.zeros((classes + 1, classes + 1), int)
    for o in (0, 1):
        target = np.where(objects == o, truth, classes)
        if rule == "boundary_iou_d2":
            shown = np.where(objects == o, labels, classes) if given_objects else labels
        else:
            shown = np.where(target == classes, classes, labels)
        for t, p in zip(restated(target).ravel(), restated(shown).ravel()):
            expected[t, p] += 1
    counts = boundary.confuse_differences(truth, labels, objects, classes, rule=rule, given_objects=given_objects)
    np.testing.assert_array_equal(counts, expected)
    background = rule == "boundary_iou_d2_labelled" and not given_objects
    inner = expected if background else expected[:-1, :-1]
    values = boundary.Differences(counts, background).iou()
    assert len(values) == classes + background
    for c, value in enumerate(values):
        union = inner[c].sum() + inner[:, c].sum() - inner[c, c]
        assert np.isnan(value) if union == 0 else value == inner[c, c] / union


def test_background_as_a_class_counts_among_the_unseen():
    """d92df57 takes the complement of the seen classes, and its array has one entry more than there are classes."""
    vocabulary = Vocabulary.from_mapping({"dog": ["head", "leg"], "cat": ["head"]}).with_unseen(["cat"])
    values = np.array([0.5, 0.3, 0.2, 0.8])
    means = metrics.split(values, ~np.isnan(values), vocabulary.seen)
    assert means["seen"] == pytest.approx(0.4) and means["unseen"] == pytest.approx(0.5)
    assert metrics.split(values[:3], np.ones(3, bool), vocabulary.seen)["unseen"] == pytest.approx(0.2)


def test_the_two_rules_disagree_where_label_values_matter():
    """Swapping two class ids changes detectron2's value and not the right one."""
    truth = np.full((40, 40), 2)
    truth[5:30, 5:20], truth[5:30, 20:35] = 0, 1
    labels = np.roll(truth, 2, 1)
    swap = np.array([1, 0, 2])
    right = [
        boundary.band_iou(boundary.count_bands(*maps, 2)) for maps in ((truth, labels), (swap[truth], swap[labels]))
    ]
    np.testing.assert_allclose(right[0], right[1][::-1])
    objects = np.zeros_like(truth)
    d2 = [
        boundary.Differences(
            boundary.confuse_differences(*maps, objects, 2, rule="boundary_iou_d2", given_objects=True), False
        ).iou()
        for maps in ((truth, labels), (swap[truth], swap[labels]))
    ]
    assert not np.allclose(d2[0], d2[1][::-1])
