"""Training on part of the vocabulary: a cheaper step with another objective (docs/performance.md says by how much)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from partseg.structures import Batch
from partseg.systems.part_clipseg.attention_maps import presence
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

    def __call__(
        self, batches: Sequence[Batch], vocabulary: Vocabulary, *, iteration: int
    ) -> tuple[Vocabulary, list[Batch]]:
        """This step's vocabulary, the same on all ranks, and the batches with labels in it."""
        kept = self.present(batches, vocabulary)
        kept |= np.random.default_rng([self.seed, iteration]).random(len(vocabulary)) < self.share
        if not kept.any():
            kept[iteration % len(vocabulary)] = True  # a batch of nothing but background still needs a class
        subset = vocabulary.subset(kept)
        device = batches[0].object_part.device
        luts = vocabulary.lut_to(subset), vocabulary.object_lut_to(subset)
        part_lut, object_lut = (torch.from_numpy(lut.copy()).to(device) for lut in luts)
        return subset, [
            replace(b, object_part=part_lut[b.object_part.long()], object=object_lut[b.object.long()]) for b in batches
        ]

    def present(self, batches: Sequence[Batch], vocabulary: Vocabulary) -> np.ndarray:
        """bool [K]: object-parts that some process must see in this step."""
        sizes = len(vocabulary), vocabulary.num_objects
        parts = _any([presence(b.object_part, sizes[0]) for b in batches])
        objects = _any([presence(b.object, sizes[1]) for b in batches])
        found = distributed.reduce_sum(torch.cat([parts, objects]).long()).cpu().numpy() > 0
        parts_found, objects_found = found[: sizes[0]], found[sizes[0] :]
        objects_found[vocabulary.object_of[parts_found]] = False
        return parts_found | objects_found[vocabulary.object_of]


def _any(masks: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(masks)).any(0)
