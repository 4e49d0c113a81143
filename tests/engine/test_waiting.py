"""How often a step waits for its device: counted on one that is not there."""

import pytest
import torch

from partseg.engine.benchmark.inputs import random_batch
from partseg.engine.build import build_model
from partseg.engine.ema import Ema
from partseg.engine.trainer import Trainer
from partseg.utils.config import compose, config_dir, instantiate
from partseg.vocabulary.shipped import shipped
from stub_device import StubDevice

TINY = sorted(path.stem for path in (config_dir() / "model").glob("*_tiny.yaml"))


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


@pytest.mark.parametrize("name", TINY)
def test_a_step_waits_once(name):
    """To read the losses; and computes what a step on the CPU computes."""
    batch = random_batch(shipped("pascal_part_116").seen_subset(), batch_size=2, input=build(name).input)
    expected = trainer_of(name, batch=batch, on="cpu").step(iter([batch]))
    with StubDevice() as device:
        trainer = trainer_of(name, batch=batch, on="meta")
        trainer.step(iter([batch]))
        device.waits.clear()
        trainer = trainer_of(name, batch=batch, on="meta")
        device.waits.clear()
        found = trainer.step(iter([batch]))
        waits = +device.waits
        loss = found.loss.item()
    assert loss == pytest.approx(float(expected.loss), rel=1e-5)
    print(waits)
    assert sum(waits.values()) == 1, waits


def build(name):
    with torch.device("meta"):
        return build_model(compose("train", [f"model={name}"]))
