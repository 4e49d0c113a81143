"""Samplers and data loaders. Order and augmentation follow from (seed, position), not from workers or processes.

A training position p of a data set is the p-th sample that the whole run, all processes together, draws from it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from multiprocessing.util import Finalize

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from partseg.data.dataset import PartSegDataset
from partseg.data.mixture import Mixture
from partseg.structures import Batch, EvalBatch, Sample, collate, stack_images

BLOCK = 4096
"""Micro-batches whose sources are drawn together: what precedes a position is counted without drawing one by one."""


class TrainSampler(Sampler):
    """Endless (source, index, draw) of one rank: `draw` is the position in the source, `index` a shuffled record.

    Every micro-batch of all ranks together comes from one source, drawn with probability proportional to its weight, or
    `in_turns`, as often in a row as its weight says; each rank takes a contiguous slice of it, so that what the ranks
    see together is the same for any `world_size`. Epoch e of a source is a permutation from (seed, e); a source with
    `chances` is drawn from with replacement. `start` is the number of micro-batches to skip: the stream from there on
    equals the tail of the stream from 0. `sizes` are the micro-batches of sources that have one of their own.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        micro_batch_size: int,
        weights: Sequence[float] = (1.0,),
        chances: Sequence[np.ndarray | None] = (),
        sizes: Sequence[int | None] = (),
        in_turns: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError("cannot sample from a data set without records")
        own = [size or micro_batch_size for size in sizes or (None,) * len(lengths)]
        for size in own:
            if size < 1 or size % world_size:
                raise ValueError(
                    f"a micro-batch of {size} images cannot be shared among {world_size} processes: make "
                    "train.batch_size a multiple of processes x train.accumulation, and dataset.sources.*.batch_size "
                    "one of processes"
                )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is not in 0..{world_size - 1}")
        if start < 0:
            raise ValueError(f"start={start} is negative")
        self.lengths = tuple(lengths)
        self.sizes = tuple(own)
        self.weights = np.asarray(weights, np.float64) / np.sum(weights)
        self.chances = tuple(chances) or (None,) * len(lengths)
        self.turns = np.repeat(np.arange(len(lengths)), np.asarray(weights, np.int64)) if in_turns else None
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        drawn = self._drawn_before(self.start)
        orders: dict[int, tuple[int, np.ndarray]] = {}
        step = self.start
        while True:
            for source in self._sources(step // BLOCK)[step % BLOCK :]:
                local = self.local(int(source))
                first = int(drawn[source]) * self.sizes[source] + self.rank * local
                length = self.lengths[source]
                for position in range(first, first + local):
                    epoch = position // length
                    if orders.get(source, (-1,))[0] != epoch:
                        orders[source] = epoch, self._order(int(source), epoch)
                    yield int(source), int(orders[source][1][position % length]), position
                drawn[source] += 1
                step += 1

    def local(self, source: int) -> int:
        """Images of one micro-batch of a source on this rank."""
        return self.sizes[source] // self.world_size

    def _order(self, source: int, epoch: int) -> np.ndarray:
        """Records of one epoch of a source, as many as it has."""
        rng, chances = np.random.default_rng([self.seed, epoch]), self.chances[source]
        if chances is None:
            return rng.permutation(self.lengths[source])
        return rng.choice(self.lengths[source], self.lengths[source], p=chances)

    def _sources(self, block: int) -> np.ndarray:
        """Source of each micro-batch of a block."""
        if len(self.lengths) == 1:
            return np.zeros(BLOCK, np.int64)
        if self.turns is not None:
            return self.turns.take(np.arange(block * BLOCK, (block + 1) * BLOCK), mode="wrap")
        return np.random.default_rng([self.seed, block, len(self.lengths)]).choice(
            len(self.lengths), BLOCK, p=self.weights
        )

    def _drawn_before(self, step: int) -> np.ndarray:
        """How many of the first `step` micro-batches came from each source."""
        if len(self.lengths) == 1:
            return np.array([step])
        whole = [np.bincount(self._sources(b), minlength=len(self.lengths)) for b in range(step // BLOCK)]
        rest = np.bincount(self._sources(step // BLOCK)[: step % BLOCK], minlength=len(self.lengths))
        return np.sum([*whole, rest], axis=0)


class MicroBatches(Sampler):
    """The sampler's stream cut into micro-batches, each of one source and as large as that one's are."""

    def __init__(self, sampler: TrainSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        stream = iter(self.sampler)
        for first in stream:
            yield [first, *islice(stream, self.sampler.local(first[0]) - 1)]


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


class _Sources(Dataset):
    """The data sets of a mixture behind one index."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[int, Sample]:
        source, index, draw = key
        return source, self.mixture.sources[source].dataset[index, draw]

    def collate(self, items: Sequence[tuple[int, Sample]]) -> Batch:
        """One micro-batch, all of one source."""
        source = self.mixture.sources[items[0][0]]
        samples = [sample.unlabelled() if source.labels == "none" else sample for _, sample in items]
        return collate(samples, vocabulary=source.dataset.vocabulary, source=source.name)


def collate_eval(samples: Sequence[Sample]) -> EvalBatch:
    """Evaluation samples: images stacked, labels per image; each sample's image is a view of the stack."""
    images, regions = stack_images(samples)
    placed = [s.region for s in samples] if regions is None else regions
    return EvalBatch(
        images, tuple(replace(s, image=i, region=r) for s, i, r in zip(samples, images, placed, strict=True))
    )


def build_train_loader(
    dataset: PartSegDataset | Mixture,
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
    make one step. A source of a mixture may have micro-batches of its own size. The stream starts at optimizer step
    `start_iter`.
    """
    if accumulation < 1 or batch_size % (world_size * accumulation):
        raise ValueError(
            f"batch_size={batch_size} (over all processes) must be a multiple of processes x accumulation = "
            f"{world_size} x {accumulation}"
        )
    sources = _Sources(Mixture.of(dataset))
    sampler = TrainSampler(
        [len(source.dataset) for source in sources.mixture.sources],
        micro_batch_size=batch_size // accumulation,
        weights=[source.weight for source in sources.mixture.sources],
        chances=[source.chances for source in sources.mixture.sources],
        sizes=[source.batch_size for source in sources.mixture.sources],
        in_turns=sources.mixture.order == "turns",
        seed=seed,
        rank=rank,
        world_size=world_size,
        start=start_iter * accumulation,
    )
    Finalize(None, _kill_workers, exitpriority=100)
    return DataLoader(
        sources,
        batch_sampler=MicroBatches(sampler),
        num_workers=num_workers,
        collate_fn=sources.collate,
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

    Workers end with their loader, or when their parent is gone. An error can keep a loader alive to the very end of
    the program, which then asks its daemons to stop by SIGTERM and waits for them: `_kill_workers` comes before that,
    also in processes of `engine.launch`, where multiprocessing ends them before any atexit function is called.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _kill_workers() -> None:
    # torch's handler would report the workers killed here as the error, instead of the one that ends the program
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _private_generator() -> torch.Generator:
    """DataLoader draws a worker seed when it starts; taken from here, it leaves torch's global random state alone."""
    return torch.Generator().manual_seed(0)
