"""Several data sets in one training, each with its own vocabulary and mapper; every micro-batch comes from one of them.

Which one is a function of (seed, position in the run), the same on all processes and after a resume. A source may
hold pseudo labels, or pictures whose labels nobody looks at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from partseg.data.coco_style import spellings
from partseg.data.dataset import Mapper, PartSegDataset
from partseg.vocabulary.names import Vocabulary

Labels = Literal["annotated", "pseudo", "none"]
Order = Literal["random", "turns"]


@dataclass(frozen=True)
class Source:
    """One data set of a mixture and how often it is drawn, in relation to the others.

    `labels` says whose they are: people's, a network's, or nobody's: then samples come without (`Sample.unlabelled`).
    """

    name: str
    dataset: PartSegDataset
    weight: float = 1.0
    labels: Labels = "annotated"
    repeat_threshold: float | None = None
    """Share of the images below which a class is drawn more often (LVIS, PACO: 0.001); None: images in turn."""
    batch_size: int | None = None
    """Images of one micro-batch over all processes; None: as many as train.batch_size and train.accumulation make."""

    @cached_property
    def chances(self) -> np.ndarray | None:
        """float64 [records]: how probable each image is to be drawn, None for images in turn.

        An image's is that of its rarest class, sqrt(threshold / share of the images that show it), at least 1 (Gupta et
        al., LVIS, CVPR 2019, section 5.2), before they are normalised.
        """
        if self.repeat_threshold is None:
            return None
        shown = [{(a.level, a.label) for a in r.annotations or ()} for r in self.dataset.records]
        counts = Counter(label for labels in shown for label in labels)
        factors = {k: max(1.0, (self.repeat_threshold * len(shown) / n) ** 0.5) for k, n in counts.items()}
        repeats = np.array([max((factors[label] for label in labels), default=1.0) for labels in shown])
        return repeats / repeats.sum()


class Mixture:
    """The sources of a training. `vocabulary` names all of their annotated classes; batches are in their own source's.

    `order` draws sources at random by weight, or in turns: each as often in a row as its weight says, which must then
    be whole numbers. With as many micro-batches per step as the weights add up to, every step sees all sources.
    """

    def __init__(self, sources: Sequence[Source], *, order: Order = "random", name: str = "mixture") -> None:
        if not sources:
            raise ValueError("a mixture needs at least one data set: dataset.sources is empty")
        unrepeatable = {s.name: s.repeat_threshold for s in sources if not 0 < (s.repeat_threshold or 1) <= 1}
        if unrepeatable:
            raise ValueError(f"dataset.sources: repeat_threshold must lie in 0..1, or be null, got {unrepeatable}")
        empty = {s.name: s.batch_size for s in sources if s.batch_size is not None and s.batch_size < 1}
        if empty:
            raise ValueError(f"dataset.sources: batch_size must be at least 1, or null, got {empty}")
        bad = {source.name: source.weight for source in sources if not source.weight > 0}
        if bad:
            raise ValueError(f"dataset.sources: weights must be positive, got {bad}; leave a data set out instead")
        if order not in get_args(Order):
            raise ValueError(f"dataset.order={order!r} is not one of {list(get_args(Order))}")
        if order == "turns" and any(source.weight != int(source.weight) for source in sources):
            weights = {source.name: source.weight for source in sources}
            raise ValueError(f"dataset.order=turns needs whole numbers as weights, got {weights}")
        strange = {source.name: source.labels for source in sources if source.labels not in get_args(Labels)}
        if strange:
            raise ValueError(f"dataset.sources: labels {strange} must be some of {list(get_args(Labels))}")
        self.sources = tuple(sources)
        self.order: Order = order
        self.name = name
        _check_levels(self.sources)
        annotated = [source for source in sources if source.labels == "annotated"] or sources
        self.vocabulary = _joined([source.dataset.vocabulary for source in annotated], name)

    @classmethod
    def of(cls, dataset: PartSegDataset | Mixture) -> Mixture:
        """A single data set as a mixture of itself alone."""
        return dataset if isinstance(dataset, Mixture) else cls([Source(dataset.name, dataset)], name=dataset.name)

    def __len__(self) -> int:
        return sum(len(source.dataset) for source in self.sources)

    def subset(self, indices: Sequence[int]) -> Mixture:
        """The records at `indices` of every source."""
        cut = [replace(s, dataset=s.dataset.subset([i for i in indices if i < len(s.dataset)])) for s in self.sources]
        return Mixture(cut, order=self.order, name=self.name)


def mixture(
    sources: Mapping[str, Mapping[str, Any]],
    split: str,
    *,
    mapper: Mapper | None = None,
    seed: int = 0,
    order: Order = "random",
    name: str = "mixture",
) -> Mixture:
    """`sources` maps a name to {dataset: builder} and, if wanted, weight (1), mapper, split (the training's), labels,
    repeat_threshold, batch_size.

    The builders are partial (`_partial_: true` in YAML): they are called with split, mapper and seed.
    """
    built = []
    for key, entry in sources.items():
        unknown = set(entry) - {"dataset", "weight", "mapper", "split", "labels", "repeat_threshold", "batch_size"}
        if "dataset" not in entry or unknown:
            raise ValueError(
                f"dataset.sources.{key} holds {sorted(entry)}; give it 'dataset' and, if wanted, 'weight', 'mapper', "
                "'split', 'labels', 'repeat_threshold', 'batch_size'"
            )
        own = {"split": entry.get("split", split), "mapper": entry.get("mapper") or mapper, "seed": seed}
        weight, labels = float(entry.get("weight", 1)), entry.get("labels", "annotated")
        drawn = {"repeat_threshold": entry.get("repeat_threshold"), "batch_size": entry.get("batch_size")}
        built.append(Source(key, entry["dataset"](**own), weight, labels, **drawn))
    return Mixture(built, order=order, name=name)


def _joined(vocabularies: Sequence[Vocabulary], name: str) -> Vocabulary:
    """All object-parts and objects, in order of first use."""
    if len(vocabularies) == 1:
        return vocabularies[0]
    words: dict[str, str] = {}
    for vocabulary in vocabularies:
        words |= vocabulary.prompt_names
    return Vocabulary(
        pairs=tuple(dict.fromkeys(pair for v in vocabularies for pair in v.pairs)),
        label_objects=tuple(dict.fromkeys(o for v in vocabularies for o in v.label_objects)),
        name=name,
        prompt_names=words,
    )


def _check_levels(sources: Sequence[Source]) -> None:
    """ValueError where one data set calls an object what another calls a part of an object."""
    objects = {name: source.name for source in sources for name in source.dataset.vocabulary.label_objects}
    for source in sources:
        for owner, part in source.dataset.vocabulary.pairs:
            for spelling in spellings(owner, part):
                if objects.get(spelling, source.name) != source.name:
                    raise ValueError(
                        f"dataset.sources: {spelling!r} is an object in {objects[spelling]!r} and the part {part!r} of "
                        f"{owner!r} in {source.name!r}; rename it in one of the two vocabularies"
                    )
