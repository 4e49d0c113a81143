"""Training on part of the vocabulary: a cheaper step with another objective (docs/performance.md says by how much)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from partseg.labels import presence
from partseg.structures import Batch
from partseg.utils import distributed
from partseg.vocabulary.names import Vocabulary


@dataclass(frozen=True)
class PromptSampling:
    """Each step sees the object-parts present in its global batch and a random `share` of the others.

    An object that is present without any labelled part keeps all of its parts. Which absent classes are drawn is a
    function of (seed, iteration). Means over channels are over fewer channels, so present classes weigh more.
    """

    share: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"train.prompt_share={self.share} is not between 0 and 1 (null: all prompts, the paper's)")

    def __call__(self, batches: Sequence[Batch], *, iteration: int) -> list[Batch]:
        """The batches in this step's part of their vocabularies, which is the same on all ranks."""
        smaller: dict[str, Callable[[Batch], Batch]] = {}
        for vocabulary in {batch.vocabulary.key: batch.vocabulary for batch in batches}.values():
            same = [batch for batch in batches if batch.vocabulary.key == vocabulary.key]
            smaller[vocabulary.key] = self._subset(same, vocabulary, iteration)
        return [smaller[batch.vocabulary.key](batch) for batch in batches]

    def _subset(self, batches: Sequence[Batch], vocabulary: Vocabulary, iteration: int) -> Callable[[Batch], Batch]:
        kept = self.present(batches, vocabulary)
        kept |= np.random.default_rng([self.seed, iteration]).random(len(vocabulary)) < self.share
        if not kept.any():
            kept[iteration % len(vocabulary)] = True  # a batch of nothing but background still needs a class
        subset = vocabulary.subset(kept)
        device = batches[0].object_part.device
        luts = vocabulary.lut_to(subset), vocabulary.object_lut_to(subset)
        part_lut, object_lut = (torch.from_numpy(lut.copy()).to(device) for lut in luts)

        def relabelled(batch: Batch) -> Batch:
            if batch.instances is not None or batch.given is not None:
                raise ValueError("train.prompt_share is for label maps; the data set also gives instances or objects")
            parts, objects = part_lut[batch.object_part.long()], object_lut[batch.object.long()]
            return replace(batch, object_part=parts, object=objects, vocabulary=subset)

        return relabelled

    def present(self, batches: Sequence[Batch], vocabulary: Vocabulary) -> np.ndarray:
        """bool [K]: object-parts that some process must see in this step."""
        sizes = len(vocabulary), vocabulary.num_objects
        parts = torch.cat([presence(b.object_part, sizes[0]) for b in batches]).any(0)
        objects = torch.cat([presence(b.object, sizes[1]) for b in batches]).any(0)
        found = distributed.reduce_sum(torch.cat([parts, objects]).long()).cpu().numpy() > 0
        parts_found, objects_found = found[: sizes[0]], found[sizes[0] :]
        objects_found[vocabulary.object_of[parts_found]] = False
        return parts_found | objects_found[vocabulary.object_of]
