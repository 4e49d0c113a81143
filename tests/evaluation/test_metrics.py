"""Metrics against ten-line loops, a hand-made 3 x 3 case, and every way in which a class can be absent."""

import numpy as np
import pytest

from partseg.evaluation import metrics
from partseg.evaluation.metrics import AVERAGINGS
from partseg.vocabulary.names import Vocabulary


def loop_iou(truth, labels, num_classes):
    """IoU by going over the pixels."""
    values = []
    for c in range(num_classes):
        hit = union = 0
        for t, p in zip(truth, labels):
            if t > num_classes:
                continue
            hit += t == c and p == c
            union += t == c or p == c
        values.append(hit / union if union else np.nan)
    return values


def test_against_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, 4, 5, 6, 65535], 500)  # class 3 is absent from the truth
    labels = rng.integers(0, 7, 500)
    confusion = np.zeros((7, 7), int)
    np.add.at(confusion, (truth[truth != 65535], labels[truth != 65535]), 1)
    assert confusion.sum() == (truth != 65535).sum()
    np.testing.assert_allclose(metrics.iou(confusion), loop_iou(truth, labels, 6))
    recall = [np.mean(labels[truth == c] == c) if (truth == c).any() else np.nan for c in range(6)]
    np.testing.assert_allclose(metrics.recall(confusion), recall)
    counted = truth != 65535
    assert metrics.pixel_accuracy(confusion) == pytest.approx((truth == labels)[counted].mean())


def test_hand_made_three_by_three():
    # two classes and background: rows truth, columns prediction
    confusion = np.array([[6, 2, 2], [0, 5, 5], [0, 3, 7]])
    np.testing.assert_allclose(metrics.iou(confusion), [6 / 10, 5 / 15])
    np.testing.assert_allclose(metrics.recall(confusion), [6 / 10, 5 / 10])
    assert metrics.fw_iou(confusion) == pytest.approx(0.5 * 6 / 10 + 0.5 * 5 / 15)
    assert metrics.mean_accuracy(confusion) == pytest.approx(0.55)
    assert metrics.pixel_accuracy(confusion) == pytest.approx(18 / 30)
    kept = metrics.without_background_predictions(confusion)
    np.testing.assert_allclose(metrics.iou(kept), [6 / 8, 5 / 10])


def test_the_three_averaging_rules_differ():
    values = np.array([0.5, 0.0, 0.4, 0.0, np.nan])
    in_truth = np.array([True, True, True, False, False])  # class 3 is predicted only, class 4 nowhere
    means = {rule: metrics.mean(values, in_truth, averaging=rule) for rule in AVERAGINGS}
    assert means == pytest.approx({"present": 0.3, "present_or_predicted": 0.225, "nonzero": 0.45})


def test_a_wrong_rule_is_refused():
    with pytest.raises(ValueError, match="present_or_predicted"):
        metrics.mean(np.ones(1), np.ones(1, bool), averaging="all")


def test_harmonic_mean():
    assert metrics.harmonic(0.0, 0.0) == 0.0
    assert metrics.harmonic(0.5, 0.0) == 0.0
    assert metrics.harmonic(0.6, 0.3) == pytest.approx(0.4)
    assert metrics.harmonic(0.5, None) is None


def test_nothing_to_average_is_none_and_all_wrong_is_zero():
    values, in_truth = np.array([0.0, np.nan]), np.array([True, False])
    for rule in AVERAGINGS:
        assert metrics.mean(values, in_truth, averaging=rule) == 0.0
        assert metrics.mean(values, in_truth, np.array([False, True]), averaging=rule) is None


def test_an_empty_matrix_has_no_scores():
    confusion = np.zeros((4, 4), np.int64)
    assert np.isnan(metrics.iou(confusion)).all()
    assert metrics.fw_iou(confusion) is None
    assert metrics.mean_accuracy(confusion) is None
    assert metrics.pixel_accuracy(confusion) is None


def test_few_shot_has_no_unseen_score():
    vocabulary = Vocabulary.from_mapping({"dog": ["head", "leg"]})
    split = metrics.split(np.array([0.2, 0.4]), np.array([True, True]), vocabulary.seen)
    assert split == {"all": pytest.approx(0.3), "seen": pytest.approx(0.3), "unseen": None, "harmonic": None}


def test_groups_by_object_and_part(vocabulary):
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, np.nan])
    in_truth = ~np.isnan(values)
    assert metrics.by_object(values, in_truth, vocabulary) == pytest.approx({"bird": 0.65, "car": 0.45, "dog": 0.2})
    parts = metrics.by_part(values, in_truth, vocabulary)
    assert parts["head"] == pytest.approx(0.35)
    assert parts["tail"] == pytest.approx(0.3)


def test_split_of_the_vocabulary(vocabulary):
    values = np.where(vocabulary.seen, 0.6, 0.3)
    split = metrics.split(values, np.ones(8, bool), vocabulary.seen)
    assert split["seen"] == pytest.approx(0.6)
    assert split["unseen"] == pytest.approx(0.3)
    assert split["harmonic"] == pytest.approx(0.4)
    assert split["all"] == pytest.approx((5 * 0.6 + 3 * 0.3) / 8)
