"""What only a GPU can show; scripts/gpu_check.sh runs these."""

import warnings

import pytest
import torch

from partseg.engine.benchmark.agreement import agreement, compiled, wrong
from partseg.engine.benchmark.inputs import random_batch
from partseg.engine.build import build_model
from partseg.engine.trainer import Trainer
from partseg.utils.config import compose, config_dir, instantiate
from partseg.vocabulary.shipped import shipped

pytestmark = pytest.mark.gpu
TINY = sorted(path.stem for path in (config_dir() / "model").glob("*_tiny.yaml"))
PROMISED = ("cat_seg_tiny", "clipseg_tiny", "part_cat_seg_tiny", "part_clipseg_tiny")  # as in test_waiting.py
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("name", TINY)
def test_a_step_is_that_of_the_cpu(name):
    assert not wrong(agreement(name, device=CUDA))


def test_a_compiled_step_is_that_of_the_cpu():
    """The other systems' are steps of scripts/gpu_check.sh: compiling takes them minutes."""
    assert not wrong(compiled("part_clipseg_tiny", device=CUDA))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", PROMISED)
def test_a_step_waits_once(name, precision):
    """As on the stub device of test_waiting.py, now by torch's own count."""
    config = compose("train", [f"experiment={name.removesuffix('_tiny')}_pascal_part_116", f"model={name}"])
    model = build_model(config).to(CUDA)
    batch = random_batch(shipped("pascal_part_116").seen_subset(), batch_size=2, input=model.input).pin_memory()
    trainer = Trainer(
        model,
        criterion=instantiate(config.criterion),
        optimizer=instantiate(config.optimizer, model=model),
        schedule=lambda _: 1.0,
        loader=[batch],
        vocabulary=batch.vocabulary,
        iterations=1,
        clip_norm=0.01,
        precision=precision,
    )
    trainer.step(iter([batch]))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            trainer.step(iter([batch]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    messages = [str(wait.message) for wait in waits if "synchroniz" in str(wait.message)]
    assert len(messages) == 1, messages
