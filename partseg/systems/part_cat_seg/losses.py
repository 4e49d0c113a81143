"""The compositional loss of PartCATSeg: the parts of an object are where the object is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from partseg.losses.term import LossInputs, compute_dtype, share_of
from partseg.structures import Batch
from partseg.vocabulary.tables import on_device

EPS = 1e-10


class Compositional:
    """Divergence between the objects at each cell and what the object-parts there add up to, both of first cosines.

    `jensen_shannon` is the authors' code and the best row of their ablation; `symmetric_kl` their formula, half the sum
    of both Kullback-Leibler divergences. No temperature. Only the object-parts' side has a gradient where CLIP is
    frozen.
    """

    reads: tuple[str, ...] = ("composition",)

    def __init__(self, *, divergence: Literal["jensen_shannon", "symmetric_kl"] = "jensen_shannon") -> None:
        if divergence not in ("jensen_shannon", "symmetric_kl"):
            raise ValueError(f"divergence is {divergence!r}; allowed are 'jensen_shannon' and 'symmetric_kl'")
        self.divergence = divergence

    def counts(self, _batch: Batch) -> dict[str, Tensor]:
        """Nothing but the number of images, which every term is given."""
        return {}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        found = inputs.outputs.composition
        if found is None:
            raise ValueError("the model compares no objects with their parts; set criterion.terms.composition.weight=0")
        dtype = compute_dtype(found.pairs)
        objects = found.objects.to(dtype).softmax(1) + EPS
        pairs = found.pairs.to(dtype).softmax(1) + EPS
        words = inputs.batch.vocabulary
        make = lambda: np.append(words.object_of, words.num_objects)  # noqa: E731
        owners = on_device(words, "owners, background last", device=pairs.device, make=make)
        summed = torch.zeros_like(objects).index_add(1, owners, pairs)
        cells = objects.shape[2] * objects.shape[3]
        return self._divergence(summed, objects).sum() * (share_of(counts["images"]) / cells).to(dtype)

    def _divergence(self, p: Float[Tensor, "B O+1 h w"], q: Float[Tensor, "B O+1 h w"]) -> Float[Tensor, "B h w"]:
        if self.divergence == "symmetric_kl":
            return (_kl(p, q) + _kl(q, p)) / 2
        middle = (p + q) / 2
        return (_kl(p, middle) + _kl(q, middle)) / 2


def _kl(p: Float[Tensor, "B C h w"], q: Float[Tensor, "B C h w"]) -> Float[Tensor, "B h w"]:
    return (p * (p.log() - q.log())).sum(1)
