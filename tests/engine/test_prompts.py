"""Prompt sampling: nothing present is dropped, labels keep their meaning, a step repeats."""

import numpy as np
import pytest
import torch

from partseg.engine.benchmark.inputs import random_batch
from partseg.engine.prompts import PromptSampling
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.vocabulary.shipped import shipped

NAMES = shipped("pascal_part_116").seen_subset()


def named(labels, names, ignore="none"):
    """Set of (pixel count, name) of a label map."""
    ids, counts = labels.unique(return_counts=True)
    return {(int(c), names[int(i)] if int(i) < len(names) else int(i)) for i, c in zip(ids, counts)}


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_labels_mean_the_same(share):
    batches = [random_batch(NAMES, batch_size=2, image_size=96, seed=s) for s in (1, 2)]
    subset, remapped = PromptSampling(share=share, seed=5)(batches, NAMES, iteration=3)
    assert len(subset) < len(NAMES) and set(subset.pairs) <= set(NAMES.pairs)
    for before, after in zip(batches, remapped):
        assert named(before.object_part, NAMES.object_parts) == named(after.object_part, subset.object_parts)
        assert named(before.object, NAMES.objects) == named(after.object, subset.objects)
        assert after.object_part.dtype == before.object_part.dtype


def test_share_of_the_absent_and_repeatability():
    batch = [random_batch(NAMES, batch_size=1, image_size=64)]
    sizes = [len(PromptSampling(share=0.5, seed=1)(batch, NAMES, iteration=i)[0]) for i in range(40)]
    present = len(PromptSampling(share=0.0, seed=1)(batch, NAMES, iteration=0)[0])
    assert np.mean(sizes) == pytest.approx(present + (len(NAMES) - present) / 2, rel=0.1) and len(set(sizes)) > 3
    again = [len(PromptSampling(share=0.5, seed=1)(batch, NAMES, iteration=i)[0]) for i in range(40)]
    assert sizes == again


def test_an_object_without_labelled_parts_keeps_its_prompts():
    (batch,) = [random_batch(NAMES, batch_size=1, image_size=64)]
    batch.object_part.fill_(IGNORE_LABEL)
    batch.object.fill_(BACKGROUND_LABEL)
    batch.object[:, :9] = NAMES.object_id("horse")
    subset, _ = PromptSampling(share=0.0, seed=0)([batch], NAMES, iteration=0)
    assert subset.objects == ("horse",) and len(subset) == len(NAMES.parts_of_object(NAMES.object_id("horse")))
    batch.object.fill_(BACKGROUND_LABEL)
    assert len(PromptSampling(share=0.0, seed=0)([batch], NAMES, iteration=7)[0]) == 1


def test_all_prompts_are_the_plain_run(tiny):
    plain, sampled = (
        tiny.trainer(iterations=3),
        tiny.trainer(iterations=3, prompt_sampling=PromptSampling(share=1.0, seed=0)),
    )
    plain.train()
    sampled.train()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, sampled.model.state_dict()[name])


def test_share_is_checked():
    with pytest.raises(ValueError, match="prompt_share=2"):
        PromptSampling(share=2, seed=0)
