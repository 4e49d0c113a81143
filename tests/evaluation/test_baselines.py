"""The most frequent part: counted by hand, and the best of all constants."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from partseg.evaluation.baselines import label_with, most_frequent_parts, whole_objects
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.protocols import OracleObj
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import PhraseMask, Sample
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


def test_the_whole_object_is_a_box_around_the_object_of_the_phrase():
    """Around all objects for a phrase about no class; empty where the object is not there."""
    objects = [[0, BACKGROUND_LABEL, BACKGROUND_LABEL, 1], [BACKGROUND_LABEL, 0, BACKGROUND_LABEL, 1]]
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    phrases = (
        PhraseMask("dog head", nothing, 0),
        PhraseMask("cup rim", nothing, 2),
        PhraseMask("fork tine", nothing, 4),
        PhraseMask("things", nothing),
    )
    one = replace(sample([[IGNORE_LABEL] * 4] * 2, objects), phrases=phrases)
    masks = whole_objects(one, VOCABULARY).masks().int()
    assert masks[0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]] and masks[1].tolist() == [[0, 0, 0, 1], [0, 0, 0, 1]]
    assert not masks[2].any() and masks[3].all()
