"""`PartSegDataset`: records + vocabulary + mapper, indexable by record and draw; the same class for every data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.structures import Record, Sample
from partseg.vocabulary.names import Vocabulary

SPLITS = ("train", "val")


class Mapper(Protocol):
    """What a dataset calls for every sample."""

    def __call__(
        self, record: Record, *, label_vocabulary: Vocabulary, vocabulary: Vocabulary, rng: np.random.Generator
    ) -> Sample | None:
        """Read and transform one record, or None to have another one drawn; all randomness comes from `rng`."""


class PartSegDataset(torch.utils.data.Dataset):
    """Records of one split, mapped on access.

    `label_vocabulary` numbers the files, `vocabulary` the samples (seen classes only in training). Sample (index, draw)
    is a pure function of (seed, index, draw); a plain index is its own draw. `skipped` counts annotations that the
    builder left out, by reason.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        label_vocabulary: Vocabulary,
        vocabulary: Vocabulary,
        mapper: Mapper,
        seed: int = 0,
        name: str = "custom",
        split: str = "train",
        skipped: Mapping[str, int] | None = None,
    ) -> None:
        if not records:
            raise ValueError(f"data set {name!r}, split {split!r}, has no records; check root and split")
        self.records = tuple(records)
        self.label_vocabulary = label_vocabulary
        self.vocabulary = vocabulary
        self.mapper = mapper
        self.seed = seed
        self.name = name
        self.split = split
        self.skipped = dict(skipped or {})

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Sample of record `index`, or of (index, draw) where `draw` numbers the augmentation.

        A record that the mapper drops is replaced by another, drawn from the same generator.
        """
        index, draw = key if isinstance(key, tuple) else (key, key)
        rng = np.random.default_rng([self.seed, draw % (1 << 63)])
        sample = self._map(index, rng)
        if sample is None:
            others = rng.permutation(len(self.records))
            sample = next((s for other in others if (s := self._map(int(other), rng)) is not None), None)
        if sample is None:
            known = f"a label of the {len(self.vocabulary)} object-parts in use"
            raise ValueError(
                f"data set {self.name!r}, split {self.split!r}: no image has "
                f"{known if len(self.vocabulary) else 'an instance of an object'}; "
                "check the data, or set augmentation.drop_without_parts=false"
            )
        return sample

    def _map(self, index: int, rng: np.random.Generator) -> Sample | None:
        record = self.records[index]
        return self.mapper(record, label_vocabulary=self.label_vocabulary, vocabulary=self.vocabulary, rng=rng)

    def subset(self, indices: Sequence[int]) -> PartSegDataset:
        """The records at `indices`, in that order."""
        return self._with_records([self.records[i] for i in indices])

    def _with_records(self, records: Sequence[Record], *, name: str | None = None) -> PartSegDataset:
        return PartSegDataset(
            records,
            label_vocabulary=self.label_vocabulary,
            vocabulary=self.vocabulary,
            mapper=self.mapper,
            seed=self.seed,
            name=name or self.name,
            split=self.split,
            skipped=self.skipped,
        )

    @cached_property
    def manifest_hash(self) -> str:
        """16 hex digits over sorted image ids, byte sizes of label PNGs and lengths of annotations, not over pixels.

        The same data under another root has the same hash; images and file dates do not count.
        """
        lines = sorted(_manifest_line(record) for record in self.records)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def in_split(names: Sequence[str], split: str, *, val_share: float) -> set[str]:
    """The names of a split of data that come without one: the hash of a name decides, "all" is all of them."""
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split {split!r} is not one of train, val, all")
    if not 0 < val_share < 1 or len(names) < 2:
        raise ValueError(f"{len(names)} photos cannot be split with val_share={val_share}; give two or more, and 0..1")
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
    count = min(len(ordered) - 1, max(1, round(val_share * len(ordered))))
    return set({"val": ordered[:count], "train": ordered[count:], "all": ordered}[split])


def _manifest_line(record: Record) -> str:
    files = (record.object_part_file_name, record.object_file_name)
    sizes = [Path(path).stat().st_size if path else None for path in files]
    annotations = record.annotations and [
        (a.level, a.label, a.counted, a.box if a.segmentation is None else _num_values(a.segmentation))
        for a in record.annotations
    ]
    phrases = [(phrase.texts, _num_values(phrase.segmentation)) for phrase in record.phrases]
    return json.dumps([record.image_id, sizes, annotations, record.image_labels, phrases])


def _num_values(segmentation: object) -> int:
    if isinstance(segmentation, Mapping):
        return len(segmentation["counts"])
    return sum(map(len, segmentation))  # type: ignore[call-overload]


def concat(datasets: Sequence[PartSegDataset]) -> PartSegDataset:
    """One dataset with the records of all; they must share vocabularies. Mapper, seed and split are the first one's."""
    if not datasets:
        raise ValueError("concat needs at least one data set")
    first = datasets[0]
    for other in datasets[1:]:
        for what in ("label_vocabulary", "vocabulary"):
            if getattr(other, what).key != getattr(first, what).key:
                raise ValueError(
                    f"cannot concatenate {first.name!r} ({first.split}) and {other.name!r} ({other.split}): their "
                    f"{what} differs; train splits hide unseen classes unless they are built with all_seen=true"
                )
    records = [record for dataset in datasets for record in dataset.records]
    joined = first._with_records(records, name="+".join(dict.fromkeys(dataset.name for dataset in datasets)))
    joined.skipped = {k: sum(d.skipped.get(k, 0) for d in datasets) for d in datasets for k in d.skipped}
    return joined


def build(
    records: Sequence[Record],
    *,
    label_vocabulary: Vocabulary,
    mapper: Mapper | None,
    seed: int,
    name: str,
    split: str,
    all_seen: bool = False,
    skipped: Mapping[str, int] | None = None,
) -> PartSegDataset:
    """What every data set's builder ends with: the sample vocabulary of the split and a default mapper.

    Train splits keep seen classes only, or all of them, marked as seen, with `all_seen`.
    """
    training = split == "train"
    vocabulary = label_vocabulary
    if training:
        vocabulary = label_vocabulary.with_unseen(()) if all_seen else label_vocabulary.seen_subset()
    return PartSegDataset(
        records,
        label_vocabulary=label_vocabulary,
        vocabulary=vocabulary,
        mapper=mapper or (TrainMapper() if training else EvalMapper()),
        seed=seed,
        name=name,
        split=split,
        skipped=skipped,
    )


def check_split(split: str, *, allowed: Sequence[str] = SPLITS) -> None:
    """ValueError for a split that the data set does not have."""
    if split not in allowed:
        raise ValueError(f"split={split!r} is not one of {list(allowed)}")
