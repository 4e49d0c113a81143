"""Small models with every part of the real ones: four image blocks, two text blocks, a 64-wide decoder."""

import pytest
import torch

from partseg.backbones.clip_vit import ClipBackbone
from partseg.labels import IGNORE_LABEL
from partseg.structures import Batch
from partseg.systems.clipseg.decoder import DecoderShape
from partseg.systems.clipseg.network import ClipSeg
from partseg.systems.part_clipseg.network import PartClipSeg
from partseg.vocabulary.names import Vocabulary

SHAPE = DecoderShape(width=64, heads=4, hidden=96)


@pytest.fixture
def vocabulary():
    """Three objects, five parts; parts and objects come in another order in the pairs than in the lists."""
    return Vocabulary.from_mapping({"dog": ["tail", "head", "leg"], "car": ["wheel", "door"], "cat": ["head", "tail"]})


def build(cls, **options):
    backbone = ClipBackbone("partseg-tiny-16", feature_blocks=(1, 2, 3))
    model = cls(backbone, **{"decoder": SHAPE, "image_size": 64, **options})
    return shake(model)


def shake(model):
    """Random values everywhere, so that zeros and ones of the initialisation hide no mistake."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def build_part_clipseg():
    """Builder of a small PartCLIPSeg with options."""
    return lambda **options: build(PartClipSeg, **options)


@pytest.fixture
def build_clipseg():
    """Builder of a small CLIPSeg with options."""
    return lambda **options: build(ClipSeg, **options)


@pytest.fixture
def images():
    """Two 64-pixel images."""
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)


@pytest.fixture
def outputs_of():
    """Training outputs of a model on pictures without labels; all logits unless told otherwise."""

    def run(model, images, vocabulary, *more, reads=("object_part", "object", "part")):
        nothing = torch.full((len(images), *images.shape[-2:]), IGNORE_LABEL, dtype=torch.int32)
        batch = Batch(images, nothing, nothing, tuple(map(str, range(len(images)))), vocabulary)
        return model(batch, reads=frozenset((*reads, *more)))

    return run
