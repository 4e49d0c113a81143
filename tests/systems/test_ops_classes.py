"""OPS with one class per object-part, the paper's "class-aware" network of table 1."""

import pytest
import torch

from partseg.labels import BACKGROUND_LABEL
from partseg.losses.term import LossInputs
from partseg.structures import Batch, Instances
from partseg.systems.ops.losses import Matching, SetLoss
from partseg.systems.ops.mask2former import Mask2FormerShape
from partseg.systems.ops.network import Ops, OpsPrompts
from partseg.vocabulary.names import Vocabulary

WORDS = Vocabulary.from_mapping({"dog": ["head", "tail"], "cat": ["head"]})

pytest.importorskip("transformers", reason="the network is transformers' Mask2Former (pip install transformers)")


@pytest.fixture
def model():
    torch.manual_seed(0)
    shape = Mask2FormerShape(
        stem=8, stages=(16, 16, 16, 16), depths=(1, 1, 1, 1), width=32, heads=4, encoder_layers=1, decoder_layers=1,
        hidden=32, queries=6, classes=3, frozen_norms=False,
    )  # fmt: skip
    return Ops(shape, image_size=64, long_edge=96).eval()


def batch_of(*labels: int) -> Batch:
    """One picture whose object is cut into columns with these labels."""
    objects = torch.full((1, 64, 96), BACKGROUND_LABEL, dtype=torch.int32)
    objects[:, 8:-8, 8:-8] = 0
    masks = torch.zeros(len(labels), 64, 96, dtype=torch.bool)
    for i in range(len(labels)):
        masks[i, 8:-8, 8 + 20 * i : 28 + 20 * i] = True
    zero = torch.zeros(len(labels), dtype=torch.long)
    parts = Instances(masks, torch.zeros(len(labels), 4), zero, torch.tensor(labels), zero - 1, zero == 0, zero == 0)
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(image, objects, objects, ("0",), WORDS, instances=(parts,), given=objects)


def class_loss(model: Ops, batch: Batch) -> torch.Tensor:
    term = SetLoss("class", matching=Matching(points=32, mask_cost=100.0, class_cost=0.0))  # masks alone match
    return term(LossInputs(model(batch), batch), term.counts(batch))


def test_the_class_term_asks_for_the_parts_own_class(model):
    """A network that is sure of class 2 pays nothing where all parts are of class 2, and much where they are not."""
    with torch.no_grad():
        model.class_head.weight.zero_()
        model.class_head.bias.copy_(torch.tensor([0.0, 0.0, 20.0, 20.0]))  # class 2 or nothing
    right, wrong = class_loss(model, batch_of(2, 2)), class_loss(model, batch_of(0, 1))
    half = 2 * torch.log(torch.tensor(2.0))  # two prediction sets, each even between class 2 and nothing
    torch.testing.assert_close(right, half, atol=1e-4, rtol=0)
    assert wrong > right + 10


@torch.no_grad()
def test_a_segments_score_is_that_of_its_best_class(model):
    """Without names in the answer; which class won changes nothing."""
    image = batch_of(0).images
    given = [batch_of(0).given[0]]
    found = []
    for order in ([0, 1, 2, 3], [2, 0, 1, 3]):
        model.class_head.weight.copy_(model.class_head.weight[order])
        model.class_head.bias.copy_(model.class_head.bias[order])
        (segments,) = model.predict(image, OpsPrompts(WORDS), sizes=[(64, 96)], given=given)
        found.append(segments.of_level("object_part"))
    assert len(found[0].scores) and (found[0].label == -1).all()
    assert found[0].scores.tolist() == pytest.approx(found[1].scores.tolist())


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_the_network_has_no_class_for(model, label):
    with pytest.raises(ValueError, match=rf"model.shape.classes=3, but a part has label {label} .*or 1 for parts"):
        class_loss(model, batch_of(0, label))
