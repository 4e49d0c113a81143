"""The criterion files on a real, small PartCLIPSeg and CLIPSeg: who gets a gradient in a step of the trainer."""

import pytest
import torch

from partseg.engine.trainer import Trainer
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Batch
from partseg.utils.config import compose, instantiate

SIZE = 128


@pytest.fixture
def photo(vocabulary) -> Batch:
    """Two images: a dog with a three-pixel tail and a car with both its parts; dog and car at other sizes."""
    obj = torch.full((2, SIZE, SIZE), BACKGROUND_LABEL, dtype=torch.int32)
    part = torch.full_like(obj, IGNORE_LABEL)
    obj[0, 10:100, 10:60] = 0
    part[0, 12:40, 12:40], part[0, 50:90, 20:50], part[0, 92:95, 22:25] = 0, 1, 2
    obj[1, 10:100, 10:60] = 2
    part[1, 12:40, 12:40], part[1, 50:90, 20:50] = 5, 6
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return Batch(images, part, obj, ("dog.jpg", "car.jpg"), vocabulary)


def _gradients(batch, overrides):
    """Term values, and the gradient of every trainable parameter (None where it has none)."""
    config = compose("train", overrides)
    torch.manual_seed(0)
    model, criterion = instantiate(config.model), instantiate(config.criterion)
    found = {}

    class Keep(torch.optim.SGD):
        def step(self):
            found.update({name: p.grad for name, p in model.named_parameters() if p.requires_grad})

    trained = [p for p in model.parameters() if p.requires_grad]
    trainer = Trainer(
        model,
        criterion=criterion,
        optimizer=Keep([{"params": trained, "initial_lr": 1.0}]),
        schedule=lambda _: 1.0,
        loader=[batch],
        vocabulary=batch.vocabulary,
        iterations=1,
    )
    return trainer.step(iter([batch])).terms, found


def _without(*terms):
    return [f"criterion.terms.{term}.weight=0" for term in terms]


TERMS = ("object_part", "object", "part", "separation", "enhancement")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["criterion=partclipseg_official"],
        _without("object", "part"),
        _without("separation", "enhancement"),
        _without("object_part", "part", "separation", "enhancement"),
        ["model=clipseg_tiny", "criterion=clipseg"],
        ["model=clipseg_tiny", "criterion=clipseg_official"],
    ],
    ids=lambda overrides: " ".join(overrides) or "default",
)
def test_every_trainable_parameter_takes_part(photo, overrides):
    """What DDP needs with find_unused_parameters=False, for each way of switching terms off."""
    _, gradients = _gradients(photo, ["model=part_clipseg_tiny", *overrides])
    assert [name for name, gradient in gradients.items() if gradient is None] == []


@pytest.mark.parametrize("criterion", ["partclipseg", "partclipseg_official"])
@pytest.mark.parametrize("term", TERMS)
def test_every_term_trains(photo, criterion, term):
    others = _without(*(name for name in TERMS if name != term))
    values, gradients = _gradients(photo, ["model=part_clipseg_tiny", f"criterion={criterion}", *others])
    reached = {name for name, gradient in gradients.items() if gradient.abs().max() > 0}
    assert values[term] > 0
    if (criterion, term) == ("partclipseg_official", "separation"):
        assert not reached
    else:
        assert {name.split(".")[0] for name in reached} >= {"backbone", "adapter", "decoder"}
