"""One training step up to the loss terms: what is sampled, what it should have been, and the heads' answers.

Legend: R regions of all images in order, F those on an instance, C classes (background is C).
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import roi_align

from partseg.geometry import Size
from partseg.structures import Batch
from partseg.systems.vlpart.heads import MASK_SIDE, Heads, Regions, StageOutputs, Truth
from partseg.systems.vlpart.names import Kind, Names, Source, class_names
from partseg.systems.vlpart.proposals import AnchorSample, Proposals


@dataclass(frozen=True)
class TrainedStage:
    """A box stage with its targets. `classes` and `offsets` are None where only names of the image are known.

    `class_weights` are 1 for classes that count, None if all do.
    """

    found: StageOutputs
    classes: Int[Tensor, " R"] | None = None
    offsets: Float[Tensor, "F 4"] | None = None
    class_weights: Float[Tensor, " C"] | None = None


@dataclass(frozen=True)
class MaskOutputs:
    """Mask logits of regions on instances with a mask, and these masks."""

    logits: Float[Tensor, "F 28 28"]
    targets: Bool[Tensor, "F 28 28"]


@dataclass(frozen=True)
class VlPartOutputs:
    """What the loss terms read; `anchors` and `masks` are None where the labels' kind does not train them.

    `labels` are the classes known to be in each image, for kinds without matched regions.
    """

    kind: Kind
    stages: tuple[TrainedStage, ...]
    anchors: AnchorSample | None = None
    masks: MaskOutputs | None = None
    labels: tuple[Int[Tensor, " L"], ...] = ()

    def nothing(self) -> Tensor:
        """A loss of 0 that depends on the network."""
        return self.stages[0].found.logits.sum() * 0


@contextlib.contextmanager
def reproducible(batch: Batch) -> Iterator[None]:
    """Random draws inside are a function of the pictures, so that a resumed run makes those it would have made."""
    seed = zlib.crc32(f"{batch.names} {int(batch.images.sum(dtype=torch.int64))}".encode())
    device = batch.images.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def truth_of(batch: Batch, names: Names) -> list[Truth]:
    """Instances of the levels that are looked for, per image; ValueError for a batch without instances."""
    if batch.instances is None:
        raise ValueError(
            f"{batch.source or 'the data set'} gives no instances to train on: set augmentation.instances=annotated, "
            "or classes where a data set outlines none; image labels alone need model.sources.<name>.kind=image"
        )
    truth = []
    for instances in batch.instances:
        classes = names.classes_of(instances.level, instances.label)
        kept = classes >= 0
        truth.append(Truth(instances.boxes[kept], classes[kept], instances.masks[kept], instances.has_mask[kept]))
    return truth


def labels_of(batch: Batch, names: Names) -> tuple[Int[Tensor, " L"], ...]:
    """Classes known to be in each image, from its image labels; ValueError for a batch without any."""
    if batch.image_labels is None or not len(names.objects):
        raise ValueError(
            f"{batch.source or 'the data set'} is of kind 'image', but gives no image labels of objects; check "
            "model.sources.<name>.kind and levels"
        )
    device = batch.images.device
    return tuple(
        torch.tensor(labels, dtype=torch.long, device=device) + len(names.parts) for labels in batch.image_labels
    )


def train_on_boxes(
    heads: Heads,
    features: Sequence[Tensor],
    proposals: Proposals,
    truth: Sequence[Truth],
    names: Names,
    *,
    source: Source,
    sizes: Sequence[Size],
    with_masks: bool,
) -> VlPartOutputs:
    """Regions matched with instances, through all stages; masks of those sampled first."""
    rows = names.rows
    background = len(rows) - 1
    regions = [
        heads.sample(boxes, true, background=background) for boxes, true in zip(proposals.boxes, truth, strict=True)
    ]
    first, stages = regions, []
    for stage in range(len(heads.stages)):
        found = heads.run(stage, features, [each.boxes for each in regions], rows)
        classes = torch.cat([each.classes for each in regions])
        weights = _class_weights(classes, source, names)
        stages.append(TrainedStage(found, classes, _offsets(heads, stage, regions, truth), weights))
        if stage + 1 < len(heads.stages):
            boxes = heads.refined(stage, found, sizes)
            regions = [
                heads.match(each, true, stage=stage + 1, background=background) for each, true in zip(boxes, truth)
            ]
    masks = _masks(heads, features, first, truth) if with_masks else None
    return VlPartOutputs(source.kind, tuple(stages), masks=masks)


def train_on_labels(
    heads: Heads,
    features: Sequence[Tensor],
    proposals: Proposals,
    labels: tuple[Int[Tensor, " L"], ...],
    names: Names,
    *,
    kind: Kind,
    sizes: Sequence[Size],
) -> VlPartOutputs:
    """The best proposals through all stages, for labels that no region is matched with."""
    boxes, rows, stages = [each[: heads.shape.top_proposals] for each in proposals.boxes], names.rows, []
    for stage in range(len(heads.stages)):
        found = heads.run(stage, features, boxes, rows)
        stages.append(TrainedStage(found))
        boxes = heads.refined(stage, found, sizes)
    return VlPartOutputs(kind, tuple(stages), labels=labels)


def _offsets(heads: Heads, stage: int, regions: Sequence[Regions], truth: Sequence[Truth]) -> Float[Tensor, "F 4"]:
    """Offsets from regions on an instance to its box."""
    pairs = [(r.boxes[r.instance >= 0], t.boxes[r.instance[r.instance >= 0]]) for r, t in zip(regions, truth)]
    boxes, wanted = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    return heads.coders[stage].encode_single(wanted, boxes)


def _masks(heads: Heads, features: Sequence[Tensor], regions: Sequence[Regions], truth: Sequence[Truth]) -> MaskOutputs:
    boxes, targets = [], []
    for region, true in zip(regions, truth):
        on_mask = region.instance >= 0
        on_mask[on_mask.clone()] = true.has_mask[region.instance[on_mask]]
        chosen, instance = region.boxes[on_mask], region.instance[on_mask]
        boxes.append(chosen)
        targets.append(cut(true, instance, chosen))
    return MaskOutputs(heads.masks(features, boxes), torch.cat(targets))


def cut(truth: Truth, instance: Int[Tensor, " F"], boxes: Float[Tensor, "F 4"]) -> Bool[Tensor, "F 28 28"]:
    """What each box shows of its instance's mask; half a cell counts."""
    rois = torch.cat([instance[:, None].to(boxes.dtype), boxes], 1)
    shown = roi_align(truth.masks[:, None].to(boxes.dtype), rois, MASK_SIDE, sampling_ratio=0, aligned=True)
    return shown[:, 0] >= 0.5


def _class_weights(classes: Int[Tensor, " R"], source: Source, names: Names) -> Float[Tensor, " C"] | None:
    """The federated loss: classes of the regions, background among them, and drawn ones up to `federated` in all."""
    if source.federated is None:
        return None
    count = len(names.parts) + len(names.objects)
    appeared = classes.unique()
    chance = source.weights(class_names(names.vocabulary, names.levels), classes.device)
    chance[appeared[appeared < count]] = 0
    wanted = min(source.federated - len(appeared), int((chance > 0).sum()))
    if wanted > 0:
        appeared = torch.cat([appeared, torch.multinomial(chance, wanted, replacement=False)])
    weights = torch.zeros(count + 1, device=classes.device)
    weights[appeared] = 1
    return weights[:-1]
