"""Prompt sampling: nothing present is dropped, labels keep their meaning, a step repeats."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from partseg.engine.benchmark.inputs import random_batch
from partseg.engine.prompts import PromptSampling
from partseg.geometry import InputSpec
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.vocabulary.shipped import shipped

NAMES = shipped("pascal_part_116").seen_subset()


def batch_of(size, **options):
    """A random batch with label maps and nothing else."""
    return replace(random_batch(NAMES, input=InputSpec((size, size)), **options), instances=None)


def named(labels, names, ignore="none"):
    """Set of (pixel count, name) of a label map."""
    ids, counts = labels.unique(return_counts=True)
    return {(int(c), names[int(i)] if int(i) < len(names) else int(i)) for i, c in zip(ids, counts)}


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_labels_mean_the_same(share):
    batches = [batch_of(96, batch_size=2, seed=s) for s in (1, 2)]
    remapped = PromptSampling(share=share, seed=5)(batches, iteration=3)
    subset = remapped[0].vocabulary
    assert remapped[1].vocabulary is subset
    assert len(subset) < len(NAMES) and set(subset.pairs) <= set(NAMES.pairs)
    for before, after in zip(batches, remapped):
        assert named(before.object_part, NAMES.object_parts) == named(after.object_part, subset.object_parts)
        assert named(before.object, NAMES.objects) == named(after.object, subset.objects)
        assert after.object_part.dtype == before.object_part.dtype


def test_share_of_the_absent_and_repeatability():
    batch = [batch_of(64, batch_size=1)]
    count = lambda share, i: len(PromptSampling(share=share, seed=1)(batch, iteration=i)[0].vocabulary)  # noqa: E731
    sizes = [count(0.5, i) for i in range(40)]
    present = count(0.0, 0)
    assert np.mean(sizes) == pytest.approx(present + (len(NAMES) - present) / 2, rel=0.1) and len(set(sizes)) > 3
    again = [count(0.5, i) for i in range(40)]
    assert sizes == again


def test_an_object_without_labelled_parts_keeps_its_prompts():
    (batch,) = [batch_of(64, batch_size=1)]
    batch.object_part.fill_(IGNORE_LABEL)
    batch.object.fill_(BACKGROUND_LABEL)
    batch.object[:, :9] = NAMES.object_id("horse")
    subset = PromptSampling(share=0.0, seed=0)([batch], iteration=0)[0].vocabulary
    assert subset.objects == ("horse",) and len(subset) == len(NAMES.parts_of_object(NAMES.object_id("horse")))
    batch.object.fill_(BACKGROUND_LABEL)
    assert len(PromptSampling(share=0.0, seed=0)([batch], iteration=7)[0].vocabulary) == 1


def test_batches_of_two_vocabularies_keep_their_own_names():
    """Two sources of a mixture in one step: what is present in one says nothing about the other."""
    other = shipped("partimagenet_40").seen_subset()
    first, again = (batch_of(64, batch_size=1, seed=s) for s in (1, 2))
    second = replace(random_batch(other, batch_size=2, input=InputSpec((96, 96))), instances=None)
    sampled = PromptSampling(share=0.0, seed=3)([first, second, again], iteration=5)
    for before, after, names in zip((first, second, again), sampled, (NAMES, other, NAMES), strict=True):
        subset = after.vocabulary
        assert set(subset.pairs) < set(names.pairs) and torch.equal(after.images, before.images)
        assert named(before.object_part, names.object_parts) == named(after.object_part, subset.object_parts)
        assert named(before.object, names.objects) == named(after.object, subset.objects)
    assert sampled[0].vocabulary == sampled[2].vocabulary != sampled[1].vocabulary
    present = set(torch.cat([first.object_part, again.object_part]).unique().tolist()) - {IGNORE_LABEL}
    assert set(sampled[0].vocabulary.pairs) == {NAMES.pairs[i] for i in present}


def test_instances_and_given_objects_are_refused():
    """Their labels would keep the numbers of the whole vocabulary."""
    batch = random_batch(NAMES, batch_size=1, input=InputSpec((64, 64)))
    with pytest.raises(ValueError, match="train.prompt_share is for label maps"):
        PromptSampling(share=0.5, seed=0)([batch], iteration=0)


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
