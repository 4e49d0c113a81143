import dataclasses
import pickle

import pytest
import torch

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Batch, EvalBatch, Record, Sample, stack_images
from partseg.vocabulary.names import Vocabulary


def sample(value: int = 0) -> Sample:
    labels = torch.full((4, 5), IGNORE_LABEL, dtype=torch.int32)
    image = torch.full((3, 4, 4), value, dtype=torch.uint8)
    return Sample(image=image, object_part=labels, object=labels, name="a", file_name="a.jpg")


def batch() -> Batch:
    labels = torch.zeros(2, 4, 4, dtype=torch.int32)
    return Batch(
        images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        object_part=labels,
        object=labels + 1,
        names=("a", "b"),
        vocabulary=Vocabulary.from_mapping({"dog": ["head"]}),
    )


def test_special_labels_fit_in_16_bits_and_differ():
    assert BACKGROUND_LABEL < IGNORE_LABEL == 65535


def test_batch_moves_as_a_whole_and_keeps_names():
    moved = batch().to("meta")
    assert {t.device.type for t in (moved.images, moved.object_part, moved.object)} == {"meta"}
    assert moved.names == ("a", "b") and len(moved) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning needs a CUDA driver")
def test_pinned_batches_are_pinned():
    assert batch().pin_memory().object.is_pinned()
    assert EvalBatch(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), (sample(),)).pin_memory().images.is_pinned()


def test_stack_images():
    images, regions = stack_images([sample(1), sample(2)])
    assert regions is None and images.shape == (2, 3, 4, 4) and images[1].unique().tolist() == [2]
    assert len(EvalBatch(images, (sample(), sample()))) == 2


def test_structures_are_frozen_and_travel_between_processes():
    record = Record("a", "a.jpg")
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.image_id = "b"
    assert pickle.loads(pickle.dumps(record)) == record
    assert pickle.loads(pickle.dumps(sample())).name == "a"
