"""The maps shown to people are the ones the losses see."""

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL, resize_labels
from partseg.systems.part_clipseg.attention_maps import MaskAttention
from partseg.systems.part_clipseg.heatmaps import Heatmaps, LabelledPicture, cells, heatmaps, measure, summary
from partseg.utils.config import compose, instantiate


@pytest.fixture
def picture(vocabulary) -> LabelledPicture:
    """A wide photo of a dog with a head and a leg."""
    part = np.full((60, 90), IGNORE_LABEL, np.int32)
    part[5:20, 5:30], part[30:50, 50:60] = 0, 1
    obj = np.where(part == IGNORE_LABEL, BACKGROUND_LABEL, 0).astype(np.int32)
    return LabelledPicture("dog", Image.new("RGB", (90, 60), (90, 120, 60)), part, obj, vocabulary)


def test_values_are_those_of_the_terms(make_batch, make_outputs, vocabulary):
    batch = make_batch("one_image")
    outputs = make_outputs(batch)
    found = measure(lambda *_, **__: outputs, batch, options=MaskAttention(), gamma=0.3, sigma=0.5)
    present = sorted(set(batch.object_part.unique().tolist()) - {IGNORE_LABEL})
    assert list(found.labels) == present
    assert found.maps.shape == (len(present), 4, 5)
    lowest = [
        min(peak for label, peak in zip(found.labels, found.peaks) if vocabulary.object_of[label] == o)
        for o in sorted({int(vocabulary.object_of[label]) for label in found.labels})
    ]
    assert found.enhancement == pytest.approx(np.mean([1 - value for value in lowest]))
    assert 0 < found.separation <= 1


def test_one_row_per_part_and_one_column_per_network(picture, vocabulary):
    torch.manual_seed(0)
    model = instantiate(compose("train", ["model=part_clipseg_tiny"]).model).eval()
    found = heatmaps(model, picture)
    assert found.labels == (0, 1)
    drawn = cells(picture, [("before", found), ("after", found)], scale=(0, 1), side=90)
    assert [image.shape for image, _ in drawn] == [(60, 90, 3)] * 6
    texts = [text for _, text in drawn]
    assert texts[0] == vocabulary.object_parts[0]
    assert texts[4].startswith("before: 0.")
    only_legs = cells(picture, [("before", found)], scale=(0, 1), parts=["leg"])
    assert [text for _, text in only_legs][0] == "dog's leg"
    assert len(only_legs) == 2


def test_a_picture_without_parts_draws_nothing(picture):
    nothing = Heatmaps((), np.zeros((0, 4, 4)), (), 0.0, 0.0)
    assert cells(picture, [("run", nothing)], scale=(0, 1)) == []
    assert summary([nothing]) == "no picture has parts"
    something = Heatmaps((0,), np.zeros((1, 4, 4)), (0.1,), 0.5, 0.25)
    assert summary([nothing, something]).startswith("separation 0.500, enhancement 0.250, mean of 1 ")


def test_labels_are_those_under_the_centre_of_each_cell():
    labels = np.arange(24).reshape(4, 6)
    assert resize_labels(labels, (2, 3)).tolist() == [[7, 9, 11], [19, 21, 23]]
    assert resize_labels(resize_labels(labels, (8, 12)), (4, 6)).tolist() == labels.tolist()
