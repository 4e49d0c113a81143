"""Samplers, collate functions and data loaders. Order and augmentation follow from (seed, position), not from workers.

A training position p is the p-th sample of the whole run: batch g of all ranks together holds positions g*B .. g*B+B-1.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.util import Finalize

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from partseg.data.dataset import PartSegDataset
from partseg.structures import Batch, EvalBatch, Sample, stack_images


class TrainSampler(Sampler):
    """Endless (index, draw) pairs of one rank; `draw` is the position in the whole run, `index` a shuffled record.

    `batch_size` is the global one. Every rank takes a contiguous slice of each global batch, so the global batches are
    the same for any `world_size`. Epoch e is a permutation from (seed, e). `start` is the number of global batches to
    skip: the stream from there on equals the tail of the stream from 0.
    """

    def __init__(
        self, num_records: int, *, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        if num_records < 1:
            raise ValueError("cannot sample from a data set without records")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size={batch_size} (over all processes) is not a multiple of {world_size} processes"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is not in 0..{world_size - 1}")
        if start < 0:
            raise ValueError(f"start={start} is negative")
        self.num_records = num_records
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        local = self.batch_size // self.world_size
        batch = self.start
        epoch, order = -1, np.empty(0, np.int64)
        while True:
            first = batch * self.batch_size + self.rank * local
            for position in range(first, first + local):
                if position // self.num_records != epoch:
                    epoch = position // self.num_records
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.num_records)
                yield int(order[position % self.num_records]), position
            batch += 1


class EvalSampler(Sampler):
    """Every record exactly once over all ranks: rank r takes r, r + world_size, ...; nothing is padded or repeated."""

    def __init__(self, num_records: int, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is not in 0..{world_size - 1}")
        self.indices = range(rank, num_records, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def collate(samples: Sequence[Sample]) -> Batch:
    """Training samples as one batch."""
    return Batch(
        images=stack_images(samples),
        object_part=torch.stack([sample.object_part for sample in samples]),
        object=torch.stack([sample.object for sample in samples]),
        names=tuple(sample.name for sample in samples),
    )


def collate_eval(samples: Sequence[Sample]) -> EvalBatch:
    """Evaluation samples: images stacked, labels per image; each sample's image is a view of the stack."""
    images = stack_images(samples)
    return EvalBatch(images=images, samples=tuple(replace(s, image=image) for s, image in zip(samples, images)))


def build_train_loader(
    dataset: PartSegDataset,
    *,
    batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start_iter: int = 0,
    accumulation: int = 1,
    pin_memory: bool = False,
    prefetch_factor: int = 4,
) -> DataLoader:
    """Endless loader of micro-batches of batch_size / (world_size * accumulation) samples.

    `batch_size` is the number of samples per optimizer step over all ranks; `accumulation` consecutive micro-batches
    make one step. The stream starts at optimizer step `start_iter`.
    """
    if accumulation < 1 or batch_size % (world_size * accumulation):
        raise ValueError(
            f"batch_size={batch_size} (over all processes) must be a multiple of processes x accumulation = "
            f"{world_size} x {accumulation}"
        )
    sampler = TrainSampler(
        len(dataset), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, start=start_iter
    )
    Finalize(None, _kill_workers, exitpriority=100)
    return DataLoader(
        dataset,
        batch_size=batch_size // (world_size * accumulation),
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers else None,
        generator=_private_generator(),
        worker_init_fn=_leave_signals_to_the_parent,
    )


def build_eval_loader(
    dataset: PartSegDataset,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """One pass over this rank's share of the records; `batch_size` is per process and does not change any result."""
    Finalize(None, _kill_workers, exitpriority=100)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EvalSampler(len(dataset), rank, world_size),
        num_workers=num_workers,
        collate_fn=collate_eval,
        pin_memory=pin_memory,
        generator=_private_generator(),
        worker_init_fn=_leave_signals_to_the_parent,
    )


def _leave_signals_to_the_parent(_worker_id: int) -> None:
    """A terminal or a scheduler signals all processes; a worker that died of it would cost the step being finished.

    Workers end with their loader, or when their parent is gone. An error can keep a loader alive to the very end of the
    program, which then asks its daemons to stop by SIGTERM and waits for them: `_kill_workers` comes before that, also in
    processes of `engine.launch`, where multiprocessing ends them before any atexit function is called.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _kill_workers() -> None:
    # torch's handler would report the workers killed here as the error, after and instead of the one that ends the program
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _private_generator() -> torch.Generator:
    """DataLoader draws a worker seed when it starts; taken from here, it leaves torch's global random state alone."""
    return torch.Generator().manual_seed(0)
