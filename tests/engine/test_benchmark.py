"""Benchmark: realistic inputs, honest byte counts, phases that add up."""

from itertools import count

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from partseg.backbones.clip_vit import ClipBackbone
from partseg.engine.benchmark.inputs import random_batch, random_sample
from partseg.engine.benchmark.measure import Case, draw_texts, evaluated_image, model_size, training_step, vocabulary_of
from partseg.engine.benchmark.memory import saved_bytes
from partseg.engine.benchmark.report import compare, lines
from partseg.engine.benchmark.timing import Clock, LayerTimes, interleave
from partseg.geometry import InputSpec
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.utils.config import compose
from partseg.utils.files import json_bytes
from partseg.vocabulary.shipped import shipped


def test_labels_are_like_real_ones():
    names = shipped("pascal_part_116")
    counts = []
    for seed in range(20):
        sample = random_sample(names, input=InputSpec((352, 352)), label_size=(375, 500), seed=seed)
        assert sample.image.shape == (3, 352, 352) and sample.object_part.shape == (375, 500)
        labelled = sample.object_part != IGNORE_LABEL
        objects = torch.from_numpy(names.object_lut.copy())[sample.object_part[labelled]]
        assert torch.equal(objects, sample.object[labelled])
        assert (sample.object == BACKGROUND_LABEL).any() and (sample.object == IGNORE_LABEL).any()
        counts.append(len(sample.object_part[labelled].unique()))
    assert 8 <= np.median(counts) <= 20


def test_batches_repeat():
    first, again = (random_batch(shipped("pascal_part_116"), batch_size=2, input=InputSpec((64, 64))) for _ in range(2))
    assert torch.equal(first.object_part, again.object_part) and not torch.equal(first.images[0], first.images[1])


def test_saved_bytes_are_counted_by_hand():
    model = nn.Linear(8, 4, bias=False)
    x = torch.rand(16, 8)

    def forward():
        hidden = torch.rand(16, 8) * 1.0
        return model(hidden).relu().sum() + model(x).relu().sum()

    # hidden and two relu outputs; x existed before, the weight is the model's, views count once
    assert saved_bytes(forward, model=model) == 4 * (16 * 8 + 2 * 16 * 4) + 4  # and the loss itself


def test_saved_bytes_do_not_pile_up():
    """Freed storages are not kept by the count, and a reused address is a new storage."""
    weight = nn.Parameter(torch.ones(1))
    model = nn.ParameterList([weight])

    def forward():
        x = torch.ones(1 << 20)
        for _ in range(8):
            x = (weight * x).exp()
        return x.sum()

    # the input and eight results of exp; each is what the next product saves too
    assert saved_bytes(forward, model=model) == pytest.approx(9 * 4 * (1 << 20), rel=1e-3)


def test_recomputation_keeps_less_and_closures_count():
    kept = {}
    for recompute in (False, True):
        config = compose("benchmark", ["model=part_clipseg_tiny", f"model.decoder_checkpoint={recompute}"])
        step = training_step(config, Case(2, None))
        kept[recompute] = saved_bytes(lambda s=step: s.loss(), model=step.model)
    assert 0.1 * kept[False] < kept[True] < 0.6 * kept[False]


def test_phases_of_a_step_add_up():
    """... also of one with part of the vocabulary, which takes label maps only."""
    for share in ("null", "0.1"):
        config = compose("benchmark", ["model=part_clipseg_tiny", f"train.prompt_share={share}"])
        step = training_step(config, Case(2, None))
        phases = [step() for _ in range(2)][-1]
        parts = {name: seconds for name, seconds in phases.items() if name != "total"}
        assert phases["total"] == pytest.approx(sum(parts.values())) and min(parts.values()) >= 0
        terms = {f"loss {name}" for name in ("object_part", "object", "part", "separation", "enhancement")}
        assert {"text tower", "network", "loss", "backward", "optimiser", "wait"} | terms <= set(parts)
        assert ("prompt sampling" in parts) == (share != "null")


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_layers_are_timed_in_both_directions():
    """Ticks of a clock: what backward runs again is backward's, and the first layer's input has no gradient."""
    ticks = count()
    model = nn.ModuleDict({"first": nn.Linear(2, 3), "then": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))})
    layers = LayerTimes(model, ["first", "then", "then.*"], clock=lambda: float(next(ticks)))
    hidden = model["first"](torch.rand(1, 2))
    loss = checkpoint(model["then"], hidden, use_reentrant=False).sum()
    layers.in_backward = True
    loss.backward()
    found = layers.take()
    # "then" reads the clock once at its start; between that and its end its two layers read it twice each
    assert {key: value for key, value in found.items() if "forward" in key} == {
        "first, forward": 1, "then, forward": 5, "then.*, forward": 2,
    }  # fmt: skip
    assert found["then, backward"] > found["then.*, backward"] >= 2 and "first, backward" not in found
    assert layers.take() == {}
    with pytest.raises(ValueError, match=r"bench.layers: no module is called 'last.\*'; names start with first, then"):
        LayerTimes(model, ["last.*"], clock=lambda: 0.0)


def test_peak_of_an_evaluated_image_and_drawn_texts(monkeypatch):
    """Drawn texts reach no text tower; a system without CLIP's is told."""
    config = compose("benchmark", ["model=part_clipseg_tiny", "bench.draw_texts=true", "bench.label_size=[20,30]"])
    monkeypatch.setattr(ClipBackbone, "encode_tokens", lambda *_: pytest.fail("a prompt was encoded"))
    image = evaluated_image(config, 20, clock=Clock(torch.device("cpu")))
    assert image.network().object_part.shape[0] == 21
    with pytest.raises(ValueError, match="bench.draw_texts=true, but the text tower trains"):
        draw_texts(image.prepared.model, training=True)
    with pytest.raises(ValueError, match="bench.draw_texts is for systems with CLIP's text tower, not Linear"):
        draw_texts(nn.Linear(1, 1))


def test_vocabulary_follows_the_data_set():
    config = compose("benchmark", ["dataset=ade20k_part_234"])
    seen, full = (vocabulary_of(config, None, training=training) for training in (True, False))
    assert len(full) == 234 and len(seen) < 234 and seen.seen.all()
    assert len(vocabulary_of(config, 77, training=True)) == 77


def test_units_divide_each_repetition_by_its_neighbours():
    clock = iter([9.0, 1.0, 3.0, 5.0])  # the first belongs to the warm-up
    work = iter([0.0, 4.0, 8.0])
    figures = interleave(lambda: {"total": next(work)}, lambda: next(clock), repeats=2, warmup=1)
    assert figures["seconds"]["total"] == 6.0 and figures["units"]["total"] == 2.0
    assert (figures["lowest_units"], figures["highest_units"], figures["unit_seconds"]) == (2.0, 2.0, 3.0)


def test_comparison_shows_ratios_and_what_is_missing(tmp_path):
    def file(name, seconds, **more):
        figures = {"seconds": {"total": seconds}, **more}
        result = {"params_m": 1.0, "trainable_m": 1.0, "device": "cpu", "memory_gb": 2.0}
        path = tmp_path / name
        path.write_bytes(json_bytes({**result, "measurements": {"train, batch 1": figures}}))
        return path

    old = file("a.json", 4.0, bytes={"saved_for_backward": 2**30})
    new = file("b.json", 1.0, bytes={"rss_above_start": 2**30})
    text = "\n".join(compare(old, new))
    assert "0.250" in text and "only in the file before: train, batch 1: saved_for_backward (GiB)" in text
    result = {"params_m": 1.0, "trainable_m": 1.0, "device": "cuda", "memory_gb": 2.0, "measurements": {}}
    assert "2.00 GB" in "\n".join(lines(result))


def test_a_network_that_starts_apart_is_counted_without_memory():
    """experiment=toy_part_clipseg ended in "Cannot copy out of meta tensor"."""
    apart = compose("benchmark", ["model=part_clipseg_tiny", "model.backbone.spread_text=true"])
    assert model_size(apart) == model_size(compose("benchmark", ["model=part_clipseg_tiny"]))


@pytest.mark.parametrize("system", ["vlpart", "ops", "cris", "part_clipseg"])
def test_an_image_of_every_kind_of_system_is_evaluated(system):
    """What its evaluators read beside label maps, instances or a phrase, is in the made-up sample."""
    if system == "ops":
        pytest.importorskip("transformers", reason="the network is transformers' Mask2Former")
    cfg = compose("benchmark", [f"experiment=toy_{system}", "bench.label_size=[48,64]"])
    image = evaluated_image(cfg, None, clock=Clock(torch.device("cpu")))
    assert image()["network"] > 0
