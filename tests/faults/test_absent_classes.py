"""The value of one class: none where the truth has nothing to measure, 0 only where it was there and missed."""

import numpy as np
import pytest

from partseg.evaluation.counts import Counts
from partseg.vocabulary.names import Vocabulary


@pytest.fixture
def entry():
    """Head half right, tail missed, ear only predicted, paw neither; the truth of every pixel is a head or a tail."""
    vocabulary = Vocabulary.from_mapping({"dog": ["head", "tail", "ear", "paw"]})
    confusion = np.zeros((5, 5), np.int64)
    confusion[0, 0], confusion[0, 2], confusion[1, 0] = 6, 2, 4
    bands = np.array([[3, 0, 0, 0], [4, 2, 0, 0], [4, 0, 1, 0]])
    metrics = ("iou", "recall", "boundary_iou")
    return Counts(vocabulary, "pred_all", "present", metrics, confusion, 1, 0, bands=bands).describe()


def test_a_class_absent_from_the_truth_has_no_value_anywhere(entry):
    values = {c["part"]: (c["iou"], c["recall"], c["boundary_iou"]) for c in entry["classes"]}
    assert values == {
        "head": (pytest.approx(50), pytest.approx(75), pytest.approx(60)),
        "tail": (0, 0, 0),
        "ear": (None, None, None),
        "paw": (None, None, None),
    }
    assert [entry["metrics"][f"IoU/dog's {part}"] for part in ("head", "tail", "ear", "paw")] == [50, 0, None, None]
    assert {part: value for part, value in entry["parts"].items() if value is None} == {"ear": None, "paw": None}


def test_means_still_know_that_it_was_predicted(entry):
    """`present_or_predicted` divides by the three classes in the truth or the prediction."""
    assert [c["num_predicted"] for c in entry["classes"]] == [10, 0, 2, 0]
    means = {rule: mean["all"] for rule, mean in entry["averages"]["iou"].items()}
    assert means == {
        "present": pytest.approx(25),
        "present_or_predicted": pytest.approx(50 / 3),
        "nonzero": pytest.approx(50),
    }
