"""What CAT-Seg and PartCATSeg cost as vocabularies grow: operations, passes of the text tower, memory in evaluation."""

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from partseg.engine.benchmark.cost import made_up_vocabulary
from partseg.engine.benchmark.inputs import random_batch
from partseg.engine.build import build_model
from partseg.evaluation.predictor import Predictor
from partseg.losses.criterion import loss_of
from partseg.systems.cat_seg.aggregator import Aggregator, AggregatorShape, Guidance
from partseg.systems.part_cat_seg.aggregator import PartAggregator, PartAggregatorShape, PartTexts
from partseg.utils.config import compose, instantiate

TRAINS_TEXT = "cat_seg_cvpr24"
SYSTEMS = ("cat_seg", TRAINS_TEXT, "part_cat_seg")


def built(name, *overrides):
    """A tiny network and its criterion, its towers frozen as those of paper size are."""
    frozen = compose("train", [f"experiment={name}_pascal_part_116"]).model.trainable
    trainable = ",".join(f'"{pattern}"' for pattern in frozen)
    chosen = [f"experiment={name}_pascal_part_116", f"model={name}_tiny", f"model.trainable=[{trainable}]"]
    config = compose("train", [*chosen, "model.image_size=64", *overrides])
    return build_model(config), instantiate(config.criterion)


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class Peak(TorchDispatchMode):
    """Most bytes that live at once of what is computed, beside what was there before."""

    def __init__(self):
        super().__init__()
        self.bytes, self._living = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if torch.is_tensor(each) and (storage := each.untyped_storage())._cdata not in before:
                self._living[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._living = {key: each for key, each in self._living.items() if not each[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._living.values()))
        return out


@pytest.mark.parametrize("name", SYSTEMS)
def test_nothing_loops_over_classes(name):
    """A step and a photo are as many operations for 30 classes as for 60."""
    counts = []
    for number in (30, 60):
        torch.manual_seed(0)
        model, criterion = built(name, "model.class_chunk=1000")
        vocabulary = made_up_vocabulary(number)
        batch = random_batch(vocabulary, batch_size=2, input=model.input)
        with Operations() as step:
            loss_of(model, criterion, batch)[0].backward()
        prepared = Predictor().prepare(model.eval(), vocabulary)
        with Operations() as photo:
            prepared(batch.images, [(50, 60)] * 2)
        counts.append((step.count, photo.count))
    assert counts[0] == counts[1] and min(counts[0]) > 100


@pytest.mark.parametrize("name", SYSTEMS)
def test_text_is_encoded_once_unless_it_trains(name, monkeypatch):
    """Per vocabulary in evaluation, also where the text tower trains; in training once, or in every step if it does."""
    model, _ = built(name)
    vocabulary, passes = made_up_vocabulary(12), []
    encode = model.backbone.encode_tokens
    monkeypatch.setattr(model.backbone, "encode_tokens", lambda tokens: passes.append(len(tokens)) or encode(tokens))
    batch = random_batch(vocabulary, batch_size=1, input=model.input)
    for step in (1, 2, 3):
        model(batch)
        levels = 3 if name == "part_cat_seg" else 1
        assert len(passes) == (step if name == TRAINS_TEXT else levels)
    passes.clear()
    prepared = Predictor().prepare(model.eval(), vocabulary)
    for _ in range(3):
        prepared(batch.images, [(50, 60)])
    assert len(passes) == (1 if name == TRAINS_TEXT else 0)


SHAPE = {"window": 6, "prompts": 3, "text": 8, "appearance": 10, "decoder": (32, 16), "decoder_guidance": (8, 4)}
DIMS = {"text_dim": 7, "appearance_dim": 5, "decoder_guidance_dims": (6, 3)}


def peak_of(kind, classes):
    """Peak bytes of an aggregator on a picture of 12 x 12 cells, a class at a time, and bytes of its volumes."""
    torch.manual_seed(0)
    guidance = Guidance(torch.randn(1, 5, 12, 12), (torch.randn(1, 6, 24, 24), torch.randn(1, 3, 48, 48)))
    cells, text = torch.randn(1, 7, 12, 12), F.normalize(torch.randn(classes, 3, 7), dim=-1)
    with torch.no_grad():
        if kind == "cat_seg":
            module = Aggregator(AggregatorShape(**SHAPE), **DIMS, class_chunk=1, recompute=False)
            with Peak() as peak:
                module(cells, text, guidance)
            return peak.bytes, classes * 144 * 128 * 4
        module = PartAggregator(PartAggregatorShape(**SHAPE), **DIMS, class_chunk=1, recompute=False)
        shared = text[: classes // 4]
        rows = torch.arange(classes) % len(shared)
        with Peak() as peak:
            module.volumes(cells, PartTexts(shared, text, rows, rows.flip(0)), guidance)
        return peak.bytes, (classes + len(shared)) * 144 * 128 * 4


@pytest.mark.parametrize("kind", ["cat_seg", "part_cat_seg"])
def test_memory_grows_as_the_cost_volumes(kind, monkeypatch):
    """By no more than 1.2 times what they do, decoded maps in: nothing else is held for all classes and cells."""
    monkeypatch.setattr("partseg.systems.part_cat_seg.classes.SCORES", 1)
    (few, small), (many, large) = (peak_of(kind, classes) for classes in (8, 40))
    assert many - few <= 1.2 * (large - small)
