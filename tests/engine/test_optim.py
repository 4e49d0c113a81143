"""Groups by pattern and schedules by hand-computed values."""

import math

import pytest
import torch
from torch import nn

from partseg.engine.optim import adamw, constant, cosine, param_groups, poly, sgd, steps
from partseg.utils.config import compose, instantiate


@pytest.fixture
def model():
    net = nn.ModuleDict({"decoder": nn.Linear(2, 3), "text": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)})
    net["frozen"].requires_grad_(False)
    return net


def test_first_matching_pattern_decides(model):
    rules = [{"pattern": "*.bias", "weight_decay": 0.0}, {"pattern": "text.*", "lr_factor": 0.1}]
    groups = param_groups(model, lr=1e-3, weight_decay=0.1, groups=rules)
    found = [(len(g["params"]), g["initial_lr"], g["weight_decay"]) for g in groups]
    assert found == [(2, 1e-3, 0.0), (1, 1e-4, 0.1), (1, 1e-3, 0.1)]


@pytest.mark.parametrize("recipe, model", [("official", "part_clipseg"), ("official_clipseg", "clipseg")])
def test_the_official_recipe_decays_neither_norms_nor_embeddings(recipe, model):
    config = compose("train", [f"recipe={recipe}", f"model={model}"])
    with torch.device("meta"):
        network = instantiate(config.model)
    settings = {key: config.optimizer[key] for key in ("lr", "weight_decay", "groups")}
    decay = {id(p): group["weight_decay"] for group in param_groups(network, **settings) for p in group["params"]}
    without = {n for n, p in network.named_parameters() if p.requires_grad and decay[id(p)] == 0}
    norms = {n for n, p in network.named_parameters() if p.requires_grad and ".norm" in n}
    assert without == norms | {"backbone.clip.token_embedding.weight", "backbone.clip.positional_embedding"}
    assert len(norms) == 12 and set(decay.values()) == {0.0, 1e-4}


def test_bad_groups_are_refused(model):
    with pytest.raises(ValueError, match=r"patterns \['frozen\.\*'\] decide no trainable"):
        param_groups(model, lr=1, weight_decay=0, groups=[{"pattern": "frozen.*"}])
    with pytest.raises(ValueError, match="lr_factor"):
        param_groups(model, lr=1, weight_decay=0, groups=[{"pattern": "*", "lr": 1}])


def test_optimizers_train_what_is_trainable(model):
    for optimizer in (adamw(model, lr=1e-3, weight_decay=0.1), sgd(model, lr=1e-3, weight_decay=0.1)):
        assert sum(len(g["params"]) for g in optimizer.param_groups) == 4
        model["text"](torch.ones(1, 2)).sum().backward()
        before = model["text"].weight.detach().clone()
        optimizer.step()
        assert not torch.equal(before, model["text"].weight)


def test_schedules():
    assert [poly(i, iterations=4) for i in (0, 2, 3)] == [1.0, 0.5**0.9, 0.25**0.9]
    assert poly(5, iterations=20, warmup_iterations=10, warmup_factor=0.0) == 0.5 * 0.75**0.9
    assert cosine(5, iterations=10) == pytest.approx(0.5)
    assert cosine(10, iterations=10, end_factor=0.1) == pytest.approx(0.1)
    assert cosine(1, iterations=4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert [constant(i, warmup_iterations=4, warmup_factor=0.2) for i in (0, 2, 4, 9)] == pytest.approx(
        [0.2, 0.6, 1, 1]
    )


def test_steps_drop_at_shares_of_the_run_after_a_warm_up():
    settings = {"iterations": 100, "at": [0.6, 0.8], "warmup_iterations": 10, "warmup_factor": 0.001}
    assert [steps(i, **settings) for i in (0, 10, 59, 60, 79, 80, 99)] == pytest.approx(
        [0.001, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )
