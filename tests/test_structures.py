import dataclasses
import pickle

import pytest
import torch

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Batch, EvalBatch, Instances, PhraseMask, Record, Sample, collate, stack_images
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


WORDS = Vocabulary.from_mapping({"dog": ["head"]})


def instances(size: tuple[int, int], parents: list[int]) -> Instances:
    """As many as there are parents; the mask of each is its own row."""
    count = len(parents)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    masks[range(count), range(count)] = True
    numbers = torch.arange(count)
    flags = torch.ones(count, dtype=torch.bool)
    return Instances(masks, torch.zeros(count, 4), numbers % 2, numbers, torch.tensor(parents), flags, flags)


def sized(height: int, width: int, **changes: object) -> Sample:
    labels = torch.zeros(height, width, dtype=torch.int32)
    image = torch.full((3, height, width), 7, dtype=torch.uint8)
    return dataclasses.replace(
        Sample(image=image, object_part=labels, object=labels + 1, name="a", file_name="a.jpg"), **changes
    )


def test_pictures_of_different_sizes_are_filled_up():
    """At the bottom and the right: black pixels, unknown labels, no object given, empty masks."""
    samples = [
        sized(
            height,
            width,
            instances=instances((height, width), [-1]),
            phrases=(PhraseMask("a dog", torch.ones(height, width, dtype=torch.bool)),),
            given=torch.zeros(height, width, dtype=torch.int32),
            image_labels=labels,
        )
        for height, width, labels in ((4, 6, ()), (5, 3, (0, 2)))
    ]
    batch = collate(samples, vocabulary=WORDS, source="pets")
    assert batch.images.shape == (2, 3, 5, 6) and batch.regions == ((0, 0, 4, 6), (0, 0, 5, 3))
    assert batch.source == "pets" and batch.image_labels == ((), (0, 2)) and batch.phrases == ("a dog", "a dog")
    for i, (_, _, height, width) in enumerate(batch.regions):
        inside = torch.zeros(5, 6, dtype=torch.bool)
        inside[:height, :width] = True
        assert torch.equal(batch.images[i, 0] == 7, inside) and not batch.images[i, :, ~inside].any()
        for labels, known in ((batch.object_part[i], 0), (batch.object[i], 1)):
            assert (labels[inside] == known).all() and (labels[~inside] == IGNORE_LABEL).all()
        assert torch.equal(batch.phrase_masks[i], inside)
        assert (batch.given[i][inside] == 0).all() and (batch.given[i][~inside] == BACKGROUND_LABEL).all()
        assert batch.instances[i].masks.shape == (1, 5, 6) and batch.instances[i].masks.sum() == width


def test_regions_are_those_of_the_samples():
    """A photo that its own mapper filled up, beside one that fills its picture."""
    samples = [sized(4, 4, region=(1, 0, 2, 4)), sized(4, 4)]
    assert collate(samples, vocabulary=WORDS).regions == ((1, 0, 2, 4), (0, 0, 4, 4))
    assert collate(samples[1:], vocabulary=WORDS).regions is None


def test_what_a_source_lacks_is_none():
    batch = collate([sized(4, 4), sized(4, 4)], vocabulary=WORDS)
    for name in ("instances", "image_labels", "phrases", "phrase_masks", "given", "regions"):
        assert getattr(batch, name) is None, name


def test_a_batch_moves_with_its_instances():
    batch = collate([sized(4, 4, instances=instances((4, 4), [-1, 0]))], vocabulary=WORDS).to("meta")
    assert {getattr(batch.instances[0], f.name).device.type for f in dataclasses.fields(Instances)} == {"meta"}
    assert batch.vocabulary is WORDS and len(batch.instances[0]) == 2


def test_selected_instances_know_their_parents():
    found = instances((6, 6), [-1, 0, 1, 0, 5, 2]).select(torch.tensor([False, True, True, True, True, True]))
    assert found.label.tolist() == [1, 2, 3, 4, 5] and found.level.tolist() == [1, 0, 1, 0, 1]
    assert found.parent.tolist() == [-1, 0, -1, 4, 1] and found.masks.shape == (5, 6, 6)
