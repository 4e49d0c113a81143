"""How often a training step and an evaluated image wait for their device: counted on one that is not there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stub_device import StubDevice

from partseg.engine.benchmark.inputs import random_batch, random_sample
from partseg.engine.build import build_model
from partseg.engine.ema import Ema
from partseg.engine.trainer import Trainer
from partseg.evaluation.runner import run
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import EvalBatch
from partseg.utils.config import compose, instantiate
from partseg.vocabulary.shipped import shipped

PROMISED = ("cat_seg_tiny", "clipseg_tiny", "part_cat_seg_tiny", "part_clipseg_tiny")
"""Systems whose steps were freed of waiting; a proposal's losses select by mask on the device, and wait for it."""


def trainer_of(name, *overrides, batch, on):
    config = compose("train", [f"experiment={name.removesuffix('_tiny')}_pascal_part_116", f"model={name}", *overrides])
    torch.manual_seed(0)
    model = build_model(config).to(on)
    return Trainer(
        model,
        criterion=instantiate(config.criterion),
        optimizer=instantiate(config.optimizer, model=model),
        schedule=lambda _: 1.0,
        loader=[batch],
        vocabulary=batch.vocabulary,
        iterations=1,
        clip_norm=0.01,
        ema=Ema(model, decay=0.9),
    )


def with_one_object(batch):
    """The same pictures, in which one object is labelled."""
    first = batch.object[0][batch.object[0] < BACKGROUND_LABEL].min()
    other = batch.object != first
    return replace(
        batch,
        object=batch.object.masked_fill(other, IGNORE_LABEL),
        object_part=batch.object_part.masked_fill(other, IGNORE_LABEL),
    )


@pytest.mark.parametrize("name", PROMISED)
def test_a_step_waits_once(name):
    """To read the losses; it runs as many operators whatever the labels show, and computes what the CPU computes."""
    batch = random_batch(shipped("pascal_part_116").seen_subset(), batch_size=2, input=build(name).input)
    expected = trainer_of(name, batch=batch, on="cpu").step(iter([batch]))
    with StubDevice() as device:
        trainer, operators = trainer_of(name, batch=batch, on="meta"), []
        for each in (batch, batch, with_one_object(batch)):  # the first copies the vocabulary's tables
            device.operators = 0
            trainer.step(iter([each]))
            operators.append(device.operators)
        assert operators[1] == operators[2] > 100
        trainer, waits = trainer_of(name, batch=batch, on="meta"), []
        for _ in range(2):  # the average of weights is a copy first
            device.waits.clear()
            found = trainer.step(iter([batch]))
            waits.append(+device.waits)
            if len(waits) == 1:
                loss = found.loss.item()
    assert loss == pytest.approx(float(expected.loss), rel=1e-5)
    assert [sum(each.values()) for each in waits] == [1, 1], waits


def test_a_step_about_phrases_waits_once():
    """CRIS; its dropout draws other numbers on the stub, so losses are not compared."""
    batch = random_batch(shipped("pascal_part_116").seen_subset(), batch_size=2, input=build("cris_tiny").input)
    with StubDevice() as device:
        trainer = trainer_of("cris_tiny", batch=batch, on="meta")
        trainer.step(iter([batch]))
        device.waits.clear()
        trainer.step(iter([batch]))
        waits = +device.waits
    assert sum(waits.values()) == 1, waits


def build(name):
    with torch.device("meta"):
        return build_model(compose("train", [f"model={name}"]))


def images(name, *, count, seed=0):
    model = build(name)
    samples = [
        random_sample(shipped("pascal_part_116"), input=model.input, label_size=(60, 80), seed=seed + i)
        for i in range(count)
    ]
    return [EvalBatch(sample.image[None], (sample,)) for sample in samples]


@pytest.mark.parametrize("name", PROMISED)
def test_an_evaluated_image_waits_a_handful_of_times(name):
    """Whatever the number of objects and classes in it; the counts are the CPU's."""
    config = compose("eval", [f"model={name}", "ckpt=none"])
    torch.manual_seed(0)
    model = build_model(config)
    scoring = {"vocabulary": shipped("pascal_part_116"), "predictor": instantiate(config.predictor)}
    batches = images(name, count=3)
    expected = run(model, batches, evaluators=instantiate(config.evaluator), **scoring)
    waits = []
    with StubDevice() as device:
        model = model.to("meta")
        for some in (batches, batches * 2):  # what comes once is in both
            device.waits.clear()
            found = run(model, some, evaluators=instantiate(config.evaluator), **scoring)
            waits.append(+device.waits)
            assert found.num_images == len(some)
            for protocol, result in expected.results.items():
                times, counted = len(some) // len(batches), found.results[protocol]
                assert (counted.confusion.sum(), counted.num_dropped) == (
                    times * result.confusion.sum(),
                    times * result.num_dropped,
                )
                # the CPU upsamples in other chunks, and random logits are nearly alike
                assert np.abs(counted.confusion - times * result.confusion).sum() < 0.01 * counted.confusion.sum()
    per_image = {kind: count / 3 for kind, count in (waits[1] - waits[0]).items()}
    assert sum(per_image.values()) <= 4, per_image
