"""CRIS's text-to-pixel contrastive loss (paper equations 12 and 13), which is binary cross-entropy over pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from partseg.losses.term import LossInputs, compute_dtype, share_of
from partseg.structures import Batch


class TextToPixel:
    """Mean over pixels and images of -log sigmoid(x) inside the phrase's mask and -log sigmoid(-x) outside.

    `mask_downsample` brings the mask to the logits' size: `area` is the share of a cell that it covers, `nearest` takes
    the cell's first pixel (the authors', whose masks are up to three pixels off in turn when they are resized back).
    """

    reads: tuple[str, ...] = ("logits",)

    def __init__(self, *, mask_downsample: Literal["area", "nearest"] = "area") -> None:
        if mask_downsample not in ("area", "nearest"):
            raise ValueError(f"mask_downsample is {mask_downsample!r}; allowed are 'area' and 'nearest'")
        self.mask_downsample = mask_downsample

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Nothing of its own: every image has one phrase and as many pixels as the others."""
        return {}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        logits, masks = inputs.outputs.logits, inputs.batch.phrase_masks
        if masks is None:
            raise ValueError("this term needs a phrase and its mask per image: set augmentation.about=phrase")
        dtype = compute_dtype(logits)
        masks = masks[:, None].to(dtype)
        if self.mask_downsample == "area":
            target = F.adaptive_avg_pool2d(masks, logits.shape[-2:])[:, 0]
        else:
            target = F.interpolate(masks, size=logits.shape[-2:], mode="nearest")[:, 0]
        per_pixel = F.binary_cross_entropy_with_logits(logits.to(dtype), target, reduction="none")
        return per_pixel.mean(dim=(1, 2)).sum() * share_of(counts["images"]).to(dtype)
