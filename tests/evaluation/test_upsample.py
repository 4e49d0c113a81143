"""The chunked argmax equals interpolation of the full volume, pixel for pixel."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from partseg.evaluation import upsample
from partseg.evaluation.labels import Choice, ScoreReader
from partseg.prediction import DenseScores


def plain(logits, size):
    return F.interpolate(logits.float()[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)


def smooth(generator, channels, height, width):
    """Logits with large regions, like a trained network's."""
    coarse = torch.randn(1, channels, 4, 4, generator=generator) * 5
    return F.interpolate(coarse, size=(height, width), mode="bicubic")[0]


@pytest.mark.parametrize("network", [(64, 64), (17, 33), (16, 16), (5, 50), (1, 1), (48, 31)])
@pytest.mark.parametrize("size", [(75, 90), (64, 64), (7, 130), (30, 20)])
def test_equals_the_plain_definition(network, size):
    generator = torch.Generator().manual_seed(0)
    for logits in (torch.randn(11, *network, generator=generator), smooth(generator, 11, *network)):
        expected = plain(logits, size)
        for chunk in (1, 2, 5, 11, None):
            assert torch.equal(upsample.argmax(logits, size, chunk=chunk).long(), expected)


def test_ties_go_to_the_lower_index():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 3, (9, 20, 20), generator=generator).float()
    for chunk, size in product((1, 2, 3, 4, 9), ((33, 41), (133, 41))):
        assert torch.equal(upsample.argmax(logits, size, chunk=chunk).long(), plain(logits, size))
    assert upsample.argmax(torch.zeros(4, 8, 8), (10, 10)).max() == 0


def test_choice_among_some_channels():
    logits = torch.randn(9, 20, 20, generator=torch.Generator().manual_seed(4))
    ids = (1, 4, 5, 8)
    for size in ((30, 20), (130, 20)):
        full = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        for chunk in (1, 3, None):
            index = upsample.argmax(logits, size, channels=ids, chunk=chunk)
            assert torch.equal(index.long(), torch.tensor(ids)[full[list(ids)].argmax(0)])


@pytest.mark.parametrize("size", [(75, 90), (30, 40), (120, 10), (375, 500), (101, 333), (352, 352), (90, 1000)])
def test_large_maps(size):
    generator = torch.Generator().manual_seed(6)
    logits = (
        torch.randn(7, 352, 352, generator=generator) if size[0] > 100 else torch.randn(7, 40, 50, generator=generator)
    )
    expected = plain(logits, size)
    for chunk in (2, 3, None):
        assert torch.equal(upsample.argmax(logits, size, chunk=chunk).long(), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_small_vocabularies(channels):
    logits = torch.randn(channels, 352, 352, generator=torch.Generator().manual_seed(5))
    assert torch.equal(upsample.argmax(logits, (375, 500), chunk=1).long(), plain(logits, (375, 500)))


def test_half_precision_is_upsampled_in_single():
    logits = torch.randn(6, 24, 24, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert torch.equal(upsample.argmax(logits, (50, 40)).long(), plain(logits, (50, 40)))


def test_more_than_255_channels():
    logits = torch.randn(300, 12, 12, generator=torch.Generator().manual_seed(3))
    assert torch.equal(upsample.argmax(logits, (20, 20), chunk=290).long(), plain(logits, (20, 20)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_refused(value):
    logits = torch.zeros(3, 20, 20)
    logits[2, 19, 19] = value
    reader = ScoreReader(DenseScores(logits, logits, (10, 10)))
    here = torch.zeros(10, 10, dtype=torch.int32)
    for read in (lambda: reader.object_parts, lambda: reader.objects, lambda: reader.choose(Choice(here, ((1, 2),)))):
        with pytest.raises(ValueError, match="not finite"):
            read()
    assert reader.choose(Choice(here, ((0, 1),))).max() == 0  # a class that is not in question may not have been asked
