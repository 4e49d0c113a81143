"""The most frequent part: counted by hand, and the best of all constants."""

from __future__ import annotations

import itertools

import torch

from partseg.evaluation.baselines import label_with, most_frequent_parts
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.protocols import OracleObj
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Sample
from partseg.vocabulary.names import Vocabulary

VOCABULARY = Vocabulary.from_mapping({"dog": ["head", "leg"], "cup": ["rim", "body"], "fork": ["tine", "handle"]})


def sample(parts: list[list[int]], objects: list[list[int]]) -> Sample:
    part, obj = torch.tensor(parts, dtype=torch.int32), torch.tensor(objects, dtype=torch.int32)
    return Sample(torch.zeros(3, *part.shape, dtype=torch.uint8), part, obj, "x", "x.jpg")


SAMPLES = [
    sample([[0, 1, 1, IGNORE_LABEL], [2, 3, 2, 2]], [[0, 0, 0, BACKGROUND_LABEL], [1, 1, 1, 1]]),
    sample([[1, 0, IGNORE_LABEL, 3]], [[0, 0, 0, 1]]),
]


def test_counts_per_object():
    assert most_frequent_parts(SAMPLES, VOCABULARY).tolist() == [1, 2, 6]


def test_labels_follow_the_given_objects():
    parts = most_frequent_parts(SAMPLES, VOCABULARY)
    assert label_with(parts, SAMPLES[0].object, VOCABULARY).tolist() == [[1, 1, 1, 6], [2, 2, 2, 2]]
    unseen = torch.tensor([[IGNORE_LABEL, 2]], dtype=torch.int32)
    assert label_with(parts, unseen, VOCABULARY).tolist() == [[6, 6]]


def test_no_other_constant_scores_higher():
    def score(parts: torch.Tensor) -> float:
        evaluator = PixelEvaluator(OracleObj())
        evaluator.reset(VOCABULARY)
        for one in SAMPLES:
            evaluator.count(label_with(parts, one.object, VOCABULARY), one)
        value = evaluator.evaluate().scores()["mIoU"]
        assert value is not None
        return value

    best = score(most_frequent_parts(SAMPLES, VOCABULARY))
    others = [score(torch.tensor(choice, dtype=torch.int32)) for choice in itertools.product((0, 1), (2, 3), (4, 5))]
    assert best == max(others) > min(others)
