"""Mask guidance (PartCLIPSeg eq. 5): binary cross-entropy against label maps at the three label levels.

Targets stay integers. With target index t, the sum of BCE over the channels of a pixel is sum_c softplus(x_c) - x_t, so
neither one-hot targets nor any other tensor of the logits' size is made besides the logits' gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.losses.term import LossInputs, compute_dtype, share_of
from partseg.structures import Batch
from partseg.vocabulary.tables import table

_CHUNK = 1 << 22
"""Elements of the only temporary of the forward pass (16 MiB in float32)."""


class _IndexBCE(torch.autograd.Function):
    """sum_p u_p sum_c w_c BCE(x_cp, [c = target_p]); saves the logits, which live anyway, and recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, pixel_weight: Tensor, channel_weight: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target, pixel_weight, channel_weight)
        dtype = pixel_weight.dtype
        step = max(1, _CHUNK // max(1, pixel_weight.numel()))
        per_channel = []
        for start in range(0, logits.shape[1], step):
            softplus = F.softplus(logits[:, start : start + step].to(dtype))
            per_channel.append(softplus.mul_(pixel_weight[:, None]).sum(dim=(0, 2, 3)))
        total = (torch.cat(per_channel).double() * channel_weight.double()).sum()
        positive = logits.gather(1, target[:, None])[:, 0].to(dtype) * pixel_weight * channel_weight[target]
        return (total - positive.sum().double()).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target, pixel_weight, channel_weight = ctx.saved_tensors
        grad = torch.sigmoid(logits)
        index = target[:, None]
        # sigmoid(x) - 1 as -sigmoid(-x): nothing cancels, which matters for 16-bit logits.
        grad.scatter_(1, index, -torch.sigmoid(-logits.gather(1, index)))
        grad.mul_(channel_weight[:, None, None].to(grad.dtype))
        grad.mul_((pixel_weight * grad_loss)[:, None].to(grad.dtype))
        return grad, None, None, None


def index_bce(
    logits: Float[Tensor, "B C H W"],
    target: Int[Tensor, "B H W"],
    *,
    pixel_weight: Float[Tensor, "B H W"],
    channel_weight: Float[Tensor, " C"],
) -> Float[Tensor, ""]:
    """Weighted sum of BCE with logits over pixels and channels, target 1 at channel `target` and 0 elsewhere.

    A pixel of weight 0 may hold any target within range. First derivatives only.
    """
    return _IndexBCE.apply(logits, target, pixel_weight, channel_weight)


def _check_size(logits: Tensor, labels: Tensor, level: str) -> None:
    if logits.shape[-2:] != labels.shape[-2:]:
        raise ValueError(
            f"{level} logits are {tuple(logits.shape[-2:])} pixels but the label map is {tuple(labels.shape[-2:])}; "
            "give the training mapper (augmentation.size) the size of the model's input"
        )


def _channel_weight(logits: Tensor, background_weight: float | None) -> Tensor:
    """Ones, with `background_weight` on the last channel unless None."""
    weight = torch.ones(logits.shape[1], dtype=compute_dtype(logits), device=logits.device)
    if background_weight is not None:
        weight[-1] = background_weight
    return weight


def _elements(channel_weight: Tensor, *, renormalise: bool) -> Tensor:
    """What one pixel adds to the denominator of a mean: its channels, or their weights."""
    weights = channel_weight.double()
    return weights.sum() if renormalise else torch.ones_like(weights).sum()


def _count(mask: Bool[Tensor, "B H W"]) -> Float[Tensor, ""]:
    return mask.sum().double()


class ObjectPartBCE:
    """Mean BCE over pixels with an object-part label plus mean BCE over background pixels, over K+1 channels.

    `background_weight` multiplies the elements of the background channel; `renormalise` divides by the sum of the
    weights instead of the number of elements. `unlabelled_as_background` adds pixels that lie on an object but carry no
    part label to the background; `joint_mean` takes one mean over both kinds of pixel instead of the sum of two means
    (the authors' CLIPSeg does both). `background_needs_object` counts background pixels only in batches where some
    pixel lies on an object (the authors' PartCLIPSeg).
    A pixel with an object-part label is never background, whatever the object map says; with `labels_on_background:
    both` such a pixel is in both means, with both targets 1 (the authors' PartCLIPSeg).
    """

    reads: tuple[str, ...] = ("object_part",)

    def __init__(
        self,
        *,
        background_weight: float = 0.05,
        renormalise: bool = False,
        unlabelled_as_background: bool = False,
        joint_mean: bool = False,
        background_needs_object: bool = False,
        labels_on_background: Literal["label", "both"] = "label",
    ) -> None:
        if labels_on_background not in ("label", "both"):
            raise ValueError(f"labels_on_background is {labels_on_background!r}; allowed are 'label' and 'both'")
        self.background_weight = background_weight
        self.renormalise = renormalise
        self.unlabelled_as_background = unlabelled_as_background
        self.joint_mean = joint_mean
        self.background_needs_object = background_needs_object
        self.labels_on_background = labels_on_background

    def _regions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        labelled = batch.object_part != IGNORE_LABEL
        background = batch.object == BACKGROUND_LABEL
        on_object = (batch.object != IGNORE_LABEL) & ~background
        if self.unlabelled_as_background:
            background = background | on_object
        if self.background_needs_object:
            background = background & on_object.any()
        return labelled, background if self.labels_on_background == "both" else background & ~labelled

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Pixels with an object-part label (`labelled`) and background pixels (`background`)."""
        labelled, background = self._regions(batch)
        return {"labelled": _count(labelled), "background": _count(background)}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        logits, labels = _required(inputs.outputs.object_part, "object_part"), inputs.batch.object_part
        _check_size(logits, labels, "object-part")
        labelled, background = self._regions(inputs.batch)
        channel_weight = _channel_weight(logits, self.background_weight)
        num_labelled, num_background = counts["labelled"], counts["background"]
        if self.joint_mean:
            num_labelled = num_background = num_labelled + num_background
        elements = _elements(channel_weight, renormalise=self.renormalise)
        pixel_weight = labelled * share_of(num_labelled) + background * share_of(num_background)
        pixel_weight = (pixel_weight / elements).to(compute_dtype(logits))
        loss = index_bce(
            logits,
            torch.where(labelled, labels, logits.shape[1] - 1).long(),
            pixel_weight=pixel_weight,
            channel_weight=channel_weight,
        )
        if self.labels_on_background == "both":  # BCE with a second target is BCE with one, less that channel's logit
            both = pixel_weight * (labelled & background) * channel_weight[-1]
            loss = loss - (logits[:, -1].to(both.dtype) * both).sum()
        return loss


class ObjectBCE:
    """Mean BCE over all pixels whose object is known, over O+1 channels; background is the target of set N.

    Ignored pixels (void, and unseen objects unless the mapper makes them background) are left out.
    """

    reads: tuple[str, ...] = ("object",)

    def __init__(self, *, background_weight: float = 0.05, renormalise: bool = False) -> None:
        self.background_weight = background_weight
        self.renormalise = renormalise

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Pixels whose object, or whose lack of one, is known (`known`)."""
        return {"known": _count(batch.object != IGNORE_LABEL)}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        logits, labels = _required(inputs.outputs.object, "object"), inputs.batch.object
        _check_size(logits, labels, "object")
        channel_weight = _channel_weight(logits, self.background_weight)
        scale = share_of(counts["known"]) / _elements(channel_weight, renormalise=self.renormalise)
        return index_bce(
            logits,
            labels.clamp(max=logits.shape[1] - 1).long(),
            pixel_weight=((labels != IGNORE_LABEL) * scale).to(compute_dtype(logits)),
            channel_weight=channel_weight,
        )


class PartBCE:
    """Mean BCE over pixels with an object-part label, over P channels; the target is the part without its object."""

    reads: tuple[str, ...] = ("part",)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Pixels with an object-part label (`labelled`)."""
        return {"labelled": _count(batch.object_part != IGNORE_LABEL)}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        logits, labels = _required(inputs.outputs.part, "part"), inputs.batch.object_part
        _check_size(logits, labels, "part")
        labelled = labels != IGNORE_LABEL
        part_of = table(inputs.batch.vocabulary, "part_of", device=labels.device)
        return index_bce(
            logits,
            part_of[torch.where(labelled, labels, 0).long()],
            pixel_weight=(labelled * share_of(counts["labelled"]) / logits.shape[1]).to(compute_dtype(logits)),
            channel_weight=_channel_weight(logits, None),
        )


def _required(logits: Tensor | None, level: str) -> Tensor:
    if logits is None:
        raise ValueError(
            f"the model has no {level} logits, which the {level} term of the criterion needs; "
            f"set criterion.terms.{level}.weight=0, or use the system's own criterion="
        )
    return logits
