import subprocess
import sys
from itertools import islice

import pytest
import torch

from partseg.data.loader import EvalSampler, TrainSampler, build_eval_loader, build_train_loader, collate_eval
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.data.pascal_part import pascal_part_116
from partseg.geometry import InputSpec
from partseg.structures import collate

SMALL = InputSpec((16, 16))


def take(count, **options):
    return list(islice(TrainSampler([7], **{"micro_batch_size": 4, **options}), count))


@pytest.fixture
def train(pascal_root):
    return pascal_part_116(pascal_root, "train", mapper=TrainMapper(16, jitter=0.2))


def test_every_epoch_is_a_permutation_and_draws_count_up():
    stream = take(21, seed=1)
    assert [draw for _, _, draw in stream] == list(range(21))
    epochs = [[index for _, index, _ in stream[i : i + 7]] for i in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] and take(21, seed=1) == stream != take(21, seed=2)


def test_start_gives_the_tail_of_the_stream():
    whole = take(40)
    for start in (1, 3, 6):
        assert take(8, start=start) == whole[4 * start : 4 * start + 8]


def test_ranks_share_the_global_batches():
    single = take(40)
    for world_size in (2, 4):
        ranks = [take(40 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
        local = 4 // world_size
        joined = [pair for g in range(10) for stream in ranks for pair in stream[g * local : (g + 1) * local]]
        assert joined == single
        resumed = take(2 * local, rank=1, world_size=world_size, start=5)
        assert resumed == ranks[1][5 * local : 7 * local]


def test_eval_shards_are_disjoint_and_complete():
    for world_size in (1, 2, 3, 9):
        shards = [list(EvalSampler(7, rank, world_size)) for rank in range(world_size)]
        assert sorted(index for shard in shards for index in shard) == list(range(7))
        assert [len(EvalSampler(7, rank, world_size)) for rank in range(world_size)] == [len(s) for s in shards]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch_size": 3, "world_size": 2}, "batch_size"),
        ({"micro_batch_size": 0}, "batch_size"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"start": -1}, "start"),
    ],
)
def test_sampler_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TrainSampler([7], **{"micro_batch_size": 4, **options})
    for lengths in ([0], [], [7, 0]):
        with pytest.raises(ValueError, match="without records"):
            TrainSampler(lengths, micro_batch_size=4)


def test_collate(train, pascal_root):
    batch = collate([train[0], train[1]], vocabulary=train.vocabulary)
    assert batch.images.shape == (2, 3, 16, 16) and batch.images.dtype == torch.uint8
    assert batch.object_part.shape == batch.object.shape == (2, 16, 16) and batch.object.dtype == torch.int32
    assert batch.names == ("2008_000001", "2008_000002") and len(batch) == 2
    assert batch.vocabulary is train.vocabulary and batch.regions is None
    val = pascal_part_116(pascal_root, "val", mapper=EvalMapper(SMALL))
    evaluated = collate_eval([val[0], val[2]])
    assert len(evaluated) == 2 and evaluated.samples[1].object.shape == (30, 40)
    assert torch.equal(evaluated.images[1], val[2].image)


def test_workers_ranks_accumulation_and_resume_do_not_change_the_data(train):
    whole = list(islice(build_train_loader(train, batch_size=4, seed=3), 4))
    workers = list(islice(build_train_loader(train, batch_size=4, seed=3, num_workers=2), 4))
    for a, b in zip(whole, workers, strict=True):
        assert a.names == b.names and torch.equal(a.images, b.images) and torch.equal(a.object, b.object)
    resumed = next(iter(build_train_loader(train, batch_size=4, seed=3, start_iter=3)))
    assert torch.equal(resumed.images, whole[3].images)
    micro = list(islice(build_train_loader(train, batch_size=4, seed=3, accumulation=2), 2))
    assert torch.equal(torch.cat([m.images for m in micro]), whole[0].images)
    ranks = [next(iter(build_train_loader(train, batch_size=4, seed=3, rank=r, world_size=2))) for r in (0, 1)]
    assert torch.equal(torch.cat([r.images for r in ranks]), whole[0].images)
    with pytest.raises(ValueError, match="processes x accumulation = 2 x 4"):
        build_train_loader(train, batch_size=4, world_size=2, accumulation=4)


def test_loaders_leave_the_global_random_state_alone(train):
    before = torch.get_rng_state()
    next(iter(build_train_loader(train, batch_size=2)))
    list(build_eval_loader(train))
    assert torch.equal(before, torch.get_rng_state())


def test_eval_loader_yields_every_record_once_whatever_the_batch_size(pascal_root):
    val = pascal_part_116(pascal_root, "val", mapper=EvalMapper(SMALL))
    for options in ({}, {"batch_size": 2}, {"batch_size": 8, "num_workers": 1}):
        names = [sample.name for batch in build_eval_loader(val, **options) for sample in batch.samples]
        assert names == ["2008_000001", "2008_000002", "2008_000003"]
    shards = [list(build_eval_loader(val, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [len(shard) for shard in shards] == [2, 1]


def test_unreadable_image_in_a_worker_raises_with_its_name(pascal_root):
    (pascal_root / "images" / "val" / "2008_000002.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    val = pascal_part_116(pascal_root, "val", mapper=EvalMapper(SMALL))
    with pytest.raises(ValueError, match=r"2008_000002\.jpg"):
        list(build_eval_loader(val, num_workers=1))


def test_a_program_that_ends_in_an_error_does_not_wait_for_its_workers(pascal_root):
    code = (
        "from partseg.data.loader import build_train_loader\n"
        "from partseg.data.mapper import TrainMapper\n"
        "from partseg.data.pascal_part import pascal_part_116\n"
        f"train = pascal_part_116({str(pascal_root)!r}, 'train', mapper=TrainMapper(16))\n"
        "batches = iter(build_train_loader(train, batch_size=1, num_workers=2))\n"
        "next(batches)\n"
        "raise RuntimeError('the reason')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "the reason" in done.stderr
