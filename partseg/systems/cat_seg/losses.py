"""CAT-Seg's loss as the authors compute it: one mean over every pixel and channel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from partseg.labels import IGNORE_LABEL
from partseg.losses.pixel import index_bce
from partseg.losses.term import LossInputs, compute_dtype, share_of
from partseg.structures import Batch


class AllPixelBCE:
    """Mean BCE over all pixels and channels; a pixel without a part label counts, whatever the reason it has none.

    It is background, weighted by `background_weight` (v1 over parts), or no class at all where that is None: the
    background channel is then left out (networks without one: v1 over objects, CVPR 2024).
    """

    reads: tuple[str, ...] = ("object_part",)

    def __init__(self, *, background_weight: float | None = 0.05) -> None:
        self.background_weight = background_weight

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """All pixels (`pixels`)."""
        pixels = batch.object_part.numel()
        return {"pixels": torch.tensor(float(pixels), dtype=torch.float64, device=batch.object_part.device)}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        logits, labels = inputs.outputs.object_part, inputs.batch.object_part
        if self.background_weight is None:
            logits = logits[:, :-1]
        dtype = compute_dtype(logits)
        weight = torch.ones(logits.shape[1], dtype=dtype, device=logits.device)
        if self.background_weight is not None:
            weight[-1] = self.background_weight
        unlabelled = labels == IGNORE_LABEL
        share = (share_of(counts["pixels"]) / logits.shape[1]).to(dtype)
        target = torch.where(unlabelled, logits.shape[1] - 1, labels).long()
        loss = index_bce(logits, target, pixel_weight=share.expand(labels.shape), channel_weight=weight)
        if self.background_weight is None:  # BCE without a target is BCE with one, plus that channel's logit
            loss = loss + (logits[:, -1].to(dtype) * unlabelled).sum() * share
        return loss
