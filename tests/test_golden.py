"""Five losses per tiny model, pinned: a refactor leaves them alone, a change of behaviour updates them and says why.

`python tests/test_golden.py` rewrites tests/golden/*.json, with names behind it only those.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Batch
from partseg.utils.config import compose, instantiate
from partseg.vocabulary.names import Vocabulary

FOLDER = Path(__file__).parent / "golden"
RUNS = {
    "part_clipseg": ["model=part_clipseg_tiny", "criterion=partclipseg"],
    "part_clipseg_official": ["model=part_clipseg_tiny", "recipe=official"],
    "clipseg": ["model=clipseg_tiny", "criterion=clipseg"],
    "cat_seg": ["experiment=cat_seg_pascal_part_116", "model=cat_seg_tiny"],
    "cat_seg_official": ["experiment=cat_seg_pascal_part_116", "model=cat_seg_tiny", "recipe=official"],
    "part_cat_seg": ["experiment=part_cat_seg_pascal_part_116", "model=part_cat_seg_tiny"],
    "cat_seg_cvpr24": ["experiment=cat_seg_cvpr24_pascal_part_116", "model=cat_seg_cvpr24_tiny"],
}
SIZE, STEPS = 64, 5


def losses(name: str) -> list[dict[str, float]]:
    """Loss and terms of the first steps on blocks of colour, from the run's own optimizer and schedule."""
    from partseg.engine.trainer import Trainer

    cfg = compose("train", [*RUNS[name], f"model.image_size={SIZE}", f"train.iterations={STEPS}", "optimizer.lr=1e-3"])
    vocabulary = Vocabulary.from_mapping({"dog": ["head", "leg"], "bird": ["head", "wing"], "car": ["wheel"]})
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    found = []

    class Keep:
        def before_train(self, trainer) -> None: ...
        def after_train(self, trainer) -> None: ...
        def after_step(self, trainer) -> None:
            found.append({"loss": trainer.last.loss.item(), **{k: v.item() for k, v in trainer.last.terms.items()}})

    Trainer(
        model,
        criterion=instantiate(cfg.criterion),
        optimizer=instantiate(cfg.optimizer, model=model),
        schedule=instantiate(cfg.schedule),
        loader=[batch(step, vocabulary) for step in range(STEPS)],
        vocabulary=vocabulary,
        iterations=STEPS,
        clip_norm=cfg.train.clip_norm,
        hooks=[Keep()],
    ).train()
    return found


def batch(step: int, vocabulary: Vocabulary) -> Batch:
    """Two pictures of 16-pixel blocks, each a class, background or unknown; classes have their own colour."""
    rng = np.random.default_rng(step)
    blocks = rng.integers(-2, len(vocabulary), (2, SIZE // 16, SIZE // 16))
    classes = blocks.repeat(16, axis=1).repeat(16, axis=2)
    object_part = np.where(classes < 0, IGNORE_LABEL, classes).astype(np.int32)
    objects = np.select([classes == -2, classes == -1], [IGNORE_LABEL, BACKGROUND_LABEL], vocabulary.object_of[classes])
    colours = np.random.default_rng(99).integers(0, 256, (len(vocabulary) + 2, 3))
    images = colours[classes + 2].astype(np.uint8).transpose(0, 3, 1, 2).copy()
    tensors = (torch.from_numpy(a) for a in (images, object_part, objects.astype(np.int32)))
    return Batch(*tensors, names=("a", "b"), vocabulary=vocabulary)


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_the_pinned_ones(name):
    pinned = json.loads((FOLDER / f"{name}.json").read_text())
    for step, (expected, found) in enumerate(zip(pinned, losses(name), strict=True)):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), f"step {step}"


if __name__ == "__main__":
    for run in sys.argv[1:] or RUNS:
        text = ",\n ".join(json.dumps(step) for step in losses(run))
        (FOLDER / f"{run}.json").write_text(f"[{text}]\n")
