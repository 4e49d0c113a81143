"""The region proposal network: anchors, proposals, and the anchors that are trained on.

Legend: B images, A anchors of one image over all levels, S sampled anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from partseg.geometry import Size
from partseg.systems.vlpart.body import STRIDES


@dataclass(frozen=True)
class RpnShape:
    """Settings of the proposal network; pairs are (training, prediction)."""

    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """One per level, P2 first."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    batch_per_image: int = 256
    pre_nms: tuple[int, int] = (2000, 1000)
    """Best anchors of each level that go into the suppression."""
    post_nms: tuple[int, int] = (1000, 1000)
    nms: float = 0.7


@dataclass(frozen=True)
class Proposals:
    """What the network says of every anchor, and the boxes that are left, best first, with their objectness (0..1)."""

    logits: Float[Tensor, "B A"]
    deltas: Float[Tensor, "B A 4"]
    anchors: Float[Tensor, "A 4"]
    boxes: list[Float[Tensor, "P 4"]]
    scores: list[Float[Tensor, " P"]]


@dataclass(frozen=True)
class AnchorSample:
    """Sampled anchors: their logits and whether they hold something, and offsets of those that do.

    `size` is the number that the sample aims at, the denominator of both losses.
    """

    logits: Float[Tensor, " S"]
    targets: Float[Tensor, " S"]
    deltas: Float[Tensor, "F 4"]
    delta_targets: Float[Tensor, "F 4"]
    size: int


class _Anchors(AnchorGenerator):
    """torchvision's anchors without its rounding of corners and with fixed strides, both as in detectron2."""

    def generate_anchors(  # type: ignore[override]
        self,
        scales: Sequence[int],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Corners around the origin, one row per ratio."""
        sizes, roots = (torch.tensor(x, dtype=dtype, device=device) for x in (scales, aspect_ratios))
        roots = roots.sqrt()
        widths, heights = (sizes / roots[:, None]).flatten(), (sizes * roots[:, None]).flatten()
        return torch.stack([-widths, -heights, widths, heights], 1) / 2

    def of_levels(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of each level."""
        self.set_cell_anchors(features[0].dtype, features[0].device)
        grids = [list(level.shape[-2:]) for level in features]
        return self.grid_anchors(grids, [[stride, stride] for stride in STRIDES])  # type: ignore[list-item]


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's RPN with un-rounded anchors; it hands out objectness, which the score of a detection needs."""

    def __init__(self, channels: int, *, shape: RpnShape) -> None:
        if len(shape.anchor_sizes) != len(STRIDES):
            raise ValueError(f"model.rpn.anchor_sizes={shape.anchor_sizes} must hold one size for each of P2..P6")
        anchors = _Anchors(tuple((size,) for size in shape.anchor_sizes), (tuple(shape.aspect_ratios),) * len(STRIDES))
        super().__init__(
            anchors,
            RPNHead(channels, len(shape.aspect_ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=shape.batch_per_image,
            positive_fraction=0.5,
            pre_nms_top_n=dict(zip(("training", "testing"), shape.pre_nms)),
            post_nms_top_n=dict(zip(("training", "testing"), shape.post_nms)),
            nms_thresh=shape.nms,
        )
        self.shape = shape

    def forward(self, features: Sequence[Tensor], sizes: Sequence[Size]) -> Proposals:  # type: ignore[override]
        """Proposals of each image, cut to its size; they carry no gradient."""
        objectness, deltas = self.head(list(features))
        per_level = [level[0].numel() for level in objectness]
        anchors = torch.cat(self.anchor_generator.of_levels(features))
        logits, offsets = concat_box_prediction_layers(objectness, deltas)
        boxes = self.box_coder.decode(offsets.detach(), [anchors] * len(sizes)).view(len(sizes), -1, 4)
        kept, scores = self.filter_proposals(boxes, logits, list(sizes), per_level)
        return Proposals(logits.view(len(sizes), -1), offsets.view(len(sizes), -1, 4), anchors, kept, scores)

    def sample(self, found: Proposals, truth: Sequence[Float[Tensor, "N 4"]]) -> AnchorSample:
        """Anchors to train on: half of them, at most, on a box of `truth`."""
        anchors = [found.anchors] * len(truth)
        labels, matched = self.assign_targets_to_anchors(anchors, [{"boxes": boxes} for boxes in truth])
        positive, negative = (torch.stack(masks).bool() for masks in self.fg_bg_sampler(labels))
        targets = torch.stack(self.box_coder.encode(matched, anchors))
        sampled = positive | negative
        return AnchorSample(
            logits=found.logits[sampled],
            targets=torch.stack(labels)[sampled],
            deltas=found.deltas[positive],
            delta_targets=targets[positive],
            size=self.shape.batch_per_image * len(truth),
        )
