"""Freezing by pattern."""

import pytest
from torch import nn

from partseg.weights.freeze import set_trainable, trainable_table


@pytest.fixture
def model():
    return nn.ModuleDict({"decoder": nn.Linear(3, 2), "adapter": nn.Linear(2, 2), "spare": nn.Linear(1, 1)})


def test_exactly_the_matching_parameters_train(model):
    assert set_trainable(model, ["decoder.*", "*.bias"], unused=["spare.bias"]) == [
        "decoder.weight",
        "decoder.bias",
        "adapter.bias",
    ]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "decoder.weight",
        "decoder.bias",
        "adapter.bias",
    }


def test_a_pattern_that_matches_nothing_is_named(model):
    with pytest.raises(ValueError, match=r"\['decoders.\*'\] match no parameter.*decoder.weight"):
        set_trainable(model, ["decoder.*", "decoders.*"])


def test_a_pattern_that_matches_unused_parameters_only_is_named(model):
    with pytest.raises(ValueError, match="spare"):
        set_trainable(model, ["spare.*"], unused=["spare.weight", "spare.bias"])


def test_table_adds_up(model):
    set_trainable(model, ["decoder.*"])
    lines = trainable_table(model).splitlines()
    assert lines[-1].split() == ["total", "8", "16"]
    assert lines[1].split() == ["decoder", "8", "8"]
