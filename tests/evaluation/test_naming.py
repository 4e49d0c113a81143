"""Segments of one system with the names of another: whose parts may be asked, and what is refused."""

import numpy as np
import pytest
import torch
from stub_systems import DenseStub, ProposalStub

from partseg.evaluation.naming import Named, name_segments
from partseg.geometry import InputSpec
from partseg.prediction import DenseScores, PhraseScores, Segments
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases

WORDS = Vocabulary.from_mapping({"dog": ["head", "tail"], "car": ["wheel"]})
HEAD, TAIL, WHEEL = range(3)
DOG = WORDS.label_objects.index("dog")


def halves(*, parents=True):
    """The left and the right half of a picture, parts of the given dog, and a dot in no object."""
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[0, :, :4], masks[1, :, 4:], masks[2, 0, 0], masks[3] = True, True, True, True
    return Segments.from_masks(
        masks,
        scores=[0.5, 0.6, 0.7, 1.0],
        level=[0, 0, 0, 1],
        label=[-1, -1, -1, DOG],
        parent=[3, 3, -1, -1] if parents else None,
        levels=("object_part", "object"),
    )


def dense(size=4):
    """Left head, right wheel, which a dog does not have, then tail."""
    logits = torch.full((4, size, size), -2.0)
    logits[HEAD, :, : size // 2] = 2
    logits[WHEEL, :, size // 2 :] = 4
    logits[TAIL, :, size // 2 :] = 1
    return DenseScores(logits, None, (8, 8))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_segment_gets_the_most_probable_part_of_its_object(size):
    found = name_segments(halves(), dense(size), WORDS)
    names = dict(zip(map(tuple, found.boxes.tolist()), found.label.tolist()))
    assert names == {(0, 0, 4, 8): HEAD, (4, 0, 8, 8): TAIL, (0, 0, 1, 1): HEAD, (0, 0, 8, 8): DOG}
    assert (np.diff(found.scores) <= 0).all() and (found.parent[found.label == TAIL] == 0).all()
    sigmoid = 1 / (1 + np.exp(-1))
    assert found.scores[found.label == TAIL] == pytest.approx([0.6 * sigmoid])


def test_without_objects_every_part_is_asked():
    found = name_segments(halves(parents=False), dense(), WORDS)
    assert WHEEL in found.label.tolist()


def test_segments_with_names_stay_and_none_is_none():
    from dataclasses import replace

    named = replace(halves(), label=np.array([1, 2, 2, 0]))
    assert name_segments(named, dense(), WORDS) is named
    nothing = halves().select(np.zeros(4, bool))
    assert len(name_segments(nothing, dense(), WORDS)) == 0


def test_only_segments_are_named_and_only_by_dense_scores():
    with pytest.raises(TypeError, match="dense scores of another, not DenseScores and DenseScores"):
        name_segments(dense(), dense(), WORDS)
    with pytest.raises(TypeError, match="not Segments and PhraseScores"):
        name_segments(halves(), PhraseScores(torch.zeros(1, 4, 4), (8, 8)), WORDS)


def test_the_pair_is_a_system():
    """The namer sees the photo at its own size, wherever it lies in the cutter's picture."""
    cutter = ProposalStub()
    cutter.input = InputSpec((32, 64), resize="short_edge", divisor=32, needs_object=True)
    namer = DenseStub(input=InputSpec((16, 16)))
    seen = []
    namer.predict = lambda images, prompts, **more: (
        seen.append(images) or DenseStub.predict(namer, images, prompts, **more)
    )
    pair = Named(cutter, namer)
    assert pair.input is cutter.input
    images = torch.zeros(1, 3, 32, 64, dtype=torch.uint8)
    images[:, :, :32, :40] = 200
    prompts = pair.encode_text(WORDS)
    given = [torch.zeros(20, 25, dtype=torch.int32)]
    with torch.no_grad():
        (found,) = pair.predict(images, prompts, sizes=[(20, 25)], regions=[(0, 0, 32, 40)], given=given)
        pair.predict(images, prompts.subset(np.array([True, True, False])), sizes=[(20, 25)], given=given)
    assert (seen[0] == 200).all() and seen[0].shape == (1, 3, 16, 16)
    assert (found.label >= 0).all() and (found.label < 3).all() and found.size == (20, 25)
    with pytest.raises(ValueError, match="not with phrases"):
        pair.encode_text(Phrases.of(["a tail"]))
    with pytest.raises(TypeError, match="is not trained"):
        pair(None)
