"""The loss terms. Every mean is over the regions of a micro-batch, which counts by its share of the step's images.

Legend: R regions, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from partseg.losses.term import LossInputs
from partseg.structures import Batch
from partseg.systems.vlpart.names import Kind
from partseg.systems.vlpart.training import TrainedStage, VlPartOutputs


class _Term:
    """A term of one kind of labels; batches of another kind add nothing."""

    reads: tuple[str, ...] = ()
    kind: Kind = "boxes"

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The images of the batch, which every term is counted with, are enough."""
        return {}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        """The micro-batch's mean times its share of all images of the step."""
        outputs: VlPartOutputs = inputs.outputs
        if outputs.kind != self.kind:
            return outputs.nothing()
        return self.value(outputs) * (len(inputs.batch) / counts["images"]).float()

    def value(self, outputs: VlPartOutputs) -> Tensor:
        """The mean over the micro-batch."""
        raise NotImplementedError


class Objectness(_Term):
    """Does an anchor lie on an instance: binary cross-entropy over the sampled anchors."""

    def value(self, outputs: VlPartOutputs) -> Tensor:
        """Sum by the number of anchors that are asked for, as detectron2 has it, not by those found."""
        assert outputs.anchors is not None
        found = outputs.anchors
        return F.binary_cross_entropy_with_logits(found.logits.float(), found.targets, reduction="sum") / found.size


class AnchorOffsets(_Term):
    """L1 of the offsets of anchors on instances."""

    def value(self, outputs: VlPartOutputs) -> Tensor:
        """Sum by the number of anchors that are asked for."""
        assert outputs.anchors is not None
        found = outputs.anchors
        return (found.deltas.float() - found.delta_targets).abs().sum() / found.size


class Classification(_Term):
    """Binary cross-entropy of every class, summed over classes and averaged over regions, all stages added."""

    def __init__(self, *, kind: Literal["boxes", "pseudo"] = "boxes") -> None:
        self.kind = kind

    def value(self, outputs: VlPartOutputs) -> Tensor:
        """Of regions matched with instances."""
        if outputs.labels:
            return outputs.nothing()
        return torch.stack([_classification(stage) for stage in outputs.stages]).sum()


class BoxOffsets(_Term):
    """L1 of the offsets of regions on instances, by the number of all regions, all stages added."""

    def value(self, outputs: VlPartOutputs) -> Tensor:
        """Class-agnostic offsets."""
        values = []
        for stage in outputs.stages:
            assert stage.classes is not None and stage.offsets is not None
            deltas = stage.found.deltas[stage.classes < stage.found.logits.shape[1] - 1]
            values.append((deltas.float() - stage.offsets).abs().sum() / max(1, len(stage.classes)))
        return torch.stack(values).sum()


class MaskCrossEntropy(_Term):
    """Binary cross-entropy of the 28 x 28 masks of regions on instances that have one."""

    reads = ("masks",)

    def value(self, outputs: VlPartOutputs) -> Tensor:
        """Mean over pixels and regions; 0 where no region is on a mask."""
        assert outputs.masks is not None
        logits, targets = outputs.masks.logits.float(), outputs.masks.targets.float()
        if not len(logits):
            return logits.sum() * 0
        return F.binary_cross_entropy_with_logits(logits, targets)


class ImageLabels(_Term):
    """An image label is that of one of the best proposals: the largest (Detic's max-size rule), or the best scored.

    Mean over the labels of an image and over images, summed over classes, all stages added. The authors leave the last
    proposal out of the largest (`skip_last`) and add the background column (`background_column`), a constant ln 2.
    With `kind="pseudo"` the labels are those of pseudo parts, whose boxes are ignored: the authors' cascade.
    """

    def __init__(
        self,
        *,
        kind: Literal["image", "pseudo"] = "image",
        pick: Literal["largest", "best"] = "largest",
        skip_last: bool = False,
        background_column: bool = False,
    ) -> None:
        if pick not in ("largest", "best"):
            raise ValueError(f"criterion term ImageLabels: pick={pick!r} is not 'largest' or 'best'")
        self.kind: Kind = kind
        self.pick = pick
        self.skip_last = skip_last
        self.background_column = background_column

    def value(self, outputs: VlPartOutputs) -> Tensor:
        """Of labels that no region was matched with."""
        if not outputs.labels:
            return outputs.nothing()
        return torch.stack([self._stage(stage, outputs.labels) for stage in outputs.stages]).sum()

    def _stage(self, stage: TrainedStage, labels: tuple[Int[Tensor, " L"], ...]) -> Tensor:
        counts = [len(boxes) for boxes in stage.found.boxes]
        columns = slice(None, None if self.background_column else -1)
        values = [stage.found.logits.sum() * 0]
        for logits, boxes, classes in zip(stage.found.logits.float().split(counts), stage.found.boxes, labels):
            if not len(classes) or not len(boxes):
                continue
            targets = F.one_hot(classes, logits.shape[1]).to(logits.dtype)[:, columns]
            chosen = logits[self._picked(logits, boxes, classes)][:, columns]
            values.append(F.binary_cross_entropy_with_logits(chosen, targets, reduction="sum") / len(classes))
        return torch.stack(values).sum() / len(labels)

    def _picked(
        self, logits: Float[Tensor, "r C+1"], boxes: Float[Tensor, "r 4"], classes: Int[Tensor, " L"]
    ) -> Int[Tensor, " L"]:
        """Which region each label is given to."""
        if self.pick == "best":
            return logits.detach()[:, classes].argmax(0)
        sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        largest = (sizes[:-1] if self.skip_last and len(sizes) > 1 else sizes).argmax()
        return largest.expand(len(classes))


def _classification(stage: TrainedStage) -> Tensor:
    assert stage.classes is not None
    logits = stage.found.logits.float()
    if not len(logits):
        return logits.sum() * 0
    targets = F.one_hot(stage.classes, logits.shape[1]).to(logits.dtype)[:, :-1]
    losses = F.binary_cross_entropy_with_logits(logits[:, :-1], targets, reduction="none")
    if stage.class_weights is not None:
        losses = losses * stage.class_weights
    return losses.sum() / len(logits)
