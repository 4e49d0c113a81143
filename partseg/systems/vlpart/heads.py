"""What is done with each proposal: pooling, the box stages with their text classifier, and the mask head.

Legend: R regions of all images in order, C classes, D text width, N annotated instances of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import box_iou, clip_boxes_to_image, remove_small_boxes, roi_align

from partseg.geometry import Size
from partseg.systems.vlpart.body import STRIDES

BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""What offsets are multiplied by, per stage."""

MASK_SIDE = 28
POOLED_LEVELS = 4
"""Regions are pooled from P2..P5."""


@dataclass(frozen=True)
class HeadShape:
    """Settings of the box and mask heads; `ious` has one entry per stage: what a region must overlap to be trained."""

    ious: tuple[float, ...] = (0.5,)
    hidden: int = 1024
    batch_per_image: int = 512
    positive_fraction: float = 0.25
    mask_channels: int = 256
    mask_convs: int = 4
    temperature: float = 50.0
    top_proposals: int = 128
    """Best proposals of an image, of which one is taken for an image label (Detic's number)."""


@dataclass(frozen=True)
class Truth:
    """Annotated instances of one image, those without a mask marked. Classes number the rows of the text matrix."""

    boxes: Float[Tensor, "N 4"]
    classes: Int[Tensor, " N"]
    masks: Bool[Tensor, "N h w"]
    has_mask: Bool[Tensor, " N"]


@dataclass(frozen=True)
class Regions:
    """Boxes of one image, and in training which instance each lies on (-1: none) and its class (C: background)."""

    boxes: Float[Tensor, "R 4"]
    instance: Int[Tensor, " R"]
    classes: Int[Tensor, " R"]


@dataclass(frozen=True)
class StageOutputs:
    """One box stage. `logits` end with the background column, which is 0; `boxes` are what it looked at, per image."""

    logits: Float[Tensor, "R C+1"]
    deltas: Float[Tensor, "R 4"]
    boxes: list[Float[Tensor, "r 4"]]


def pool(features: Sequence[Tensor], boxes: Sequence[Float[Tensor, "r 4"]], size: int) -> Float[Tensor, "R c s s"]:
    """RoIAlign of each box on the level of its size (FPN eq. 1), at pixel centres and with as many samples as it has.

    torchvision's MultiScaleRoIAlign has no `aligned`; values differ by up to 2 without it.
    """
    images = torch.cat([each.new_full((len(each), 1), i) for i, each in enumerate(boxes)])
    flat = torch.cat(list(boxes))
    sides = ((flat[:, 2] - flat[:, 0]) * (flat[:, 3] - flat[:, 1])).sqrt()
    levels = (4 + torch.log2(sides / 224 + 1e-8)).floor().clamp(2, 1 + POOLED_LEVELS).long() - 2
    pooled = features[0].new_zeros(len(flat), features[0].shape[1], size, size)
    rois = torch.cat([images, flat], 1).to(features[0].dtype)
    for level, (feature, stride) in enumerate(zip(features[:POOLED_LEVELS], STRIDES)):
        chosen = (levels == level).nonzero()[:, 0]
        values = roi_align(feature, rois[chosen], size, 1 / stride, sampling_ratio=0, aligned=True)
        pooled = pooled.index_put((chosen,), values.to(pooled.dtype))
    return pooled


class BoxStage(nn.Module):
    """Two layers, a text classifier and class-agnostic box offsets."""

    def __init__(self, channels: int, *, text_dim: int, hidden: int, temperature: float) -> None:
        super().__init__()
        self.fc = TwoMLPHead(channels * 7 * 7, hidden)
        self.embed = nn.Linear(hidden, text_dim)
        inner, last = nn.Linear(hidden, hidden), nn.Linear(hidden, 4)
        self.offsets = nn.Sequential(inner, nn.ReLU(inplace=True), last)
        self.temperature = temperature
        for layer in (self.fc.fc6, self.fc.fc7, inner):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # Caffe2's xavier
        nn.init.normal_(last.weight, std=0.001)
        for layer in (self.fc.fc6, self.fc.fc7, inner, last):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Float[Tensor, "R c 7 7"], rows: Float[Tensor, "C+1 D"]) -> tuple[Tensor, Tensor]:
        """Logits against the rows of the text matrix, which are normalised or 0, and box offsets."""
        x = self.fc(pooled)
        logits = self.temperature * F.normalize(self.embed(x), dim=1) @ rows.t()
        return logits, self.offsets(x)


class Heads(nn.Module):
    """One box stage, or several that each refine the boxes of the one before (Cascade R-CNN), and one mask head."""

    def __init__(self, channels: int, *, text_dim: int, shape: HeadShape) -> None:
        super().__init__()
        if not 1 <= len(shape.ious) <= len(BOX_WEIGHTS):
            raise ValueError(f"model.heads.ious={shape.ious} must hold one to {len(BOX_WEIGHTS)} thresholds")
        self.shape = shape
        self.stages = nn.ModuleList(
            BoxStage(channels, text_dim=text_dim, hidden=shape.hidden, temperature=shape.temperature)
            for _ in shape.ious
        )
        self.coders = [BoxCoder(weights) for weights in BOX_WEIGHTS[: len(shape.ious)]]
        self.mask = MaskRCNNHeads(channels, (shape.mask_channels,) * shape.mask_convs, 1)
        self.mask_logits = MaskRCNNPredictor(shape.mask_channels, shape.mask_channels, 1)
        nn.init.zeros_(self.mask_logits.conv5_mask.bias)
        nn.init.normal_(self.mask_logits.mask_fcn_logits.weight, std=0.001)
        nn.init.zeros_(self.mask_logits.mask_fcn_logits.bias)
        self.sampler = BalancedPositiveNegativeSampler(shape.batch_per_image, shape.positive_fraction)

    def match(self, boxes: Float[Tensor, "r 4"], truth: Truth, *, stage: int, background: int) -> Regions:
        """The instance that each box overlaps most, if it does so by the stage's share."""
        if not len(truth.boxes):
            nothing = torch.full((len(boxes),), -1, device=boxes.device)
            return Regions(boxes, nothing, torch.full_like(nothing, background))
        iou = self.shape.ious[stage]
        instance = Matcher(iou, iou)(box_iou(truth.boxes, boxes))
        classes = torch.where(instance >= 0, truth.classes[instance.clamp(min=0)], background)
        return Regions(boxes, instance, classes)

    def sample(self, proposals: Float[Tensor, "P 4"], truth: Truth, *, background: int) -> Regions:
        """Regions to train on out of the proposals and the annotated boxes, a quarter on instances at most."""
        regions = self.match(torch.cat([proposals, truth.boxes]), truth, stage=0, background=background)
        (positive,), (negative,) = self.sampler([(regions.instance >= 0).long()])
        kept = (positive | negative).bool()
        return Regions(regions.boxes[kept], regions.instance[kept], regions.classes[kept])

    def run(
        self, stage: int, features: Sequence[Tensor], boxes: list[Float[Tensor, "r 4"]], rows: Float[Tensor, "C+1 D"]
    ) -> StageOutputs:
        """One stage on the boxes of all images."""
        pooled = pool(features, boxes, 7)
        if len(self.stages) > 1 and pooled.requires_grad:
            # every stage sends a gradient into the features: each has its share
            share = 1 / len(self.stages)
            pooled = pooled * share + pooled.detach() * (1 - share)
        logits, deltas = self.stages[stage](pooled, rows)
        return StageOutputs(logits, deltas, boxes)

    def refined(self, stage: int, outputs: StageOutputs, sizes: Sequence[Size]) -> list[Float[Tensor, "r 4"]]:
        """The boxes that a stage's offsets give, cut to the images, without gradient."""
        moved = self.decoded(stage, outputs)
        boxes = [clip_boxes_to_image(each.detach(), size) for each, size in zip(moved, sizes)]
        if not self.training:
            return boxes
        return [each[remove_small_boxes(each, 1e-9)] for each in boxes]

    def decoded(self, stage: int, outputs: StageOutputs) -> list[Float[Tensor, "r 4"]]:
        """The boxes that a stage's offsets give, not cut."""
        counts = [len(each) for each in outputs.boxes]
        moved = self.coders[stage].decode_single(outputs.deltas.float(), torch.cat(outputs.boxes))
        return list(moved.split(counts))

    def masks(self, features: Sequence[Tensor], boxes: list[Float[Tensor, "r 4"]]) -> Float[Tensor, "R 28 28"]:
        """Class-agnostic mask logits inside each box."""
        return self.mask_head(pool(features, boxes, MASK_SIDE // 2))

    def mask_head(self, pooled: Float[Tensor, "R c 14 14"]) -> Float[Tensor, "R 28 28"]:
        """Logits of pooled regions."""
        return self.mask_logits(self.mask(pooled))[:, 0]
