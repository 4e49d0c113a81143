"""Scored regions to instances: thresholds, suppression, masks at the photo's size, parts with their objects.

Legend: R regions of one image, C classes, N instances of one photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image, nms

from partseg.geometry import Size
from partseg.prediction import Segments
from partseg.structures import INSTANCE_LEVELS
from partseg.systems.vlpart.names import Names


@dataclass(frozen=True)
class Detection:
    """What becomes of scored regions. The public score thresholds: 0.05, PACO 0.001, LVIS 0.0001; a photo 0.7.

    `any_class_nms` is a second suppression among all classes (VLPart: none), `grouping` the least share of a part's
    pixels that its object must cover to be its parent (VLPart groups nothing); None: off.
    """

    score_threshold: float = 0.05
    nms: float = 0.5
    most: int = 100
    objectness: bool = True
    any_class_nms: float | None = None
    grouping: float | None = 0.5

    def __post_init__(self) -> None:
        shares = {"nms": self.nms, "any_class_nms": self.any_class_nms, "grouping": self.grouping}
        wrong = {name: value for name, value in shares.items() if value is not None and not 0 < value <= 1}
        if wrong or self.most < 1 or not 0 <= self.score_threshold < 1:
            raise ValueError(
                f"model.detection: {wrong or [self.most, self.score_threshold]}: nms, any_class_nms and grouping must "
                "lie in 0..1, score_threshold too, and most be at least 1"
            )


@dataclass(frozen=True)
class Found:
    """Instances of one image, best first, boxes at network size; `region` is the proposal each came from."""

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, " N"]
    classes: Int[Tensor, " N"]
    region: Int[Tensor, " N"]


def weighted(
    chances: Float[Tensor, "R C+1"], objectness: Float[Tensor, " R"], settings: Detection
) -> Float[Tensor, "R C+1"]:
    """Scores: the geometric mean of a class's probability and the proposal's objectness."""
    return (chances * objectness[:, None]).sqrt() if settings.objectness else chances


def select(boxes: Float[Tensor, "R 4"], scores: Float[Tensor, "R C+1"], *, size: Size, settings: Detection) -> Found:
    """The best instances of one image: above the threshold, suppressed within each class."""
    boxes = clip_boxes_to_image(boxes, size)
    region, classes = (scores[:, :-1] > settings.score_threshold).nonzero(as_tuple=True)
    values = scores[region, classes]
    kept = batched_nms(boxes[region], values, classes, settings.nms)
    if settings.any_class_nms is not None:
        kept = kept[nms(boxes[region[kept]], values[kept], settings.any_class_nms)]
    kept = kept[: settings.most]
    return Found(boxes[region[kept]], values[kept], classes[kept], region[kept])


def bare(boxes: Float[Tensor, "P 4"], scores: Float[Tensor, " P"], *, inside: Size, size: Size) -> Segments:
    """Boxes at network size as segments without masks or names at the photo's own `size`."""
    placed = clip_boxes_to_image(boxes.float() * scale_of(inside, size, boxes.device), size).cpu().numpy()
    nothing = coco_mask.encode(np.zeros(size, np.uint8, order="F"))
    count = len(placed)
    return Segments(
        rles=(nothing,) * count,
        boxes=placed.astype(np.float64),
        scores=scores.float().cpu().numpy().astype(np.float64),
        level=np.zeros(count, int),
        label=np.full(count, -1),
        parent=np.full(count, -1),
        size=size,
        levels=("object_part",),
    )


def scale_of(inside: Size, size: Size, device: torch.device) -> Float[Tensor, 4]:
    """What boxes at network size are multiplied by for the photo's own."""
    return torch.tensor([size[1] / inside[1], size[0] / inside[0]], device=device).repeat(2)


def segments(
    found: Found, logits: Float[Tensor, "N m m"], names: Names, *, inside: Size, size: Size, settings: Detection
) -> Segments:
    """Instances at the photo's own `size`; `inside` is how large it was for the network. Empty ones are left out."""
    boxes = clip_boxes_to_image(found.boxes.float() * scale_of(inside, size, found.boxes.device), size).cpu()
    rles = [pasted(mask, box.numpy(), size) for mask, box in zip(logits.float().sigmoid().cpu(), boxes)]
    solid = ((boxes[:, 2:] > boxes[:, :2]).all(1)).numpy()
    level, label = names.levels_of(found.classes.cpu().numpy())
    every = Segments(
        rles=tuple(rles),
        boxes=boxes.numpy().astype(np.float64),
        scores=found.scores.cpu().numpy().astype(np.float64),
        level=level,
        label=label,
        parent=np.full(len(rles), -1),
        size=size,
        levels=names.levels,
    ).select(solid)
    return every if settings.grouping is None else grouped(every, names, share=settings.grouping)


def pasted(chances: Float[Tensor, "m m"], box: Float[np.ndarray, 4], size: Size) -> dict[str, object]:
    """RLE of a mask inside its box, at the photo's size: sampled at pixel centres, above 0.5, as in detectron2.

    torchvision's paste_masks_in_image resizes into whole-number boxes; 0.1 % of the pixels differ.
    """
    left, top = (max(0, int(np.floor(value)) - 1) for value in box[:2])
    right, bottom = (min(limit, int(np.ceil(value)) + 1) for value, limit in zip(box[2:], (size[1], size[0])))
    mask = np.zeros(size, np.uint8, order="F")
    if right > left and bottom > top and (box[2:] > box[:2]).all():
        x0, y0, x1, y1 = torch.from_numpy(np.asarray(box, np.float32))
        x = (torch.arange(left, right) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(top, bottom) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
        inner = F.grid_sample(chances[None, None], grid, align_corners=False)[0, 0] >= 0.5
        mask[top:bottom, left:right] = inner.numpy()
    return coco_mask.encode(mask)


def grouped(found: Segments, names: Names, *, share: float) -> Segments:
    """Parts with the object of their class as parent that covers most of them, if that is `share` of their pixels."""
    objects = found.level == INSTANCE_LEVELS.index("object")
    parts = np.flatnonzero(~objects)
    places = np.flatnonzero(objects)
    if not len(parts) or not len(places):
        return found
    vocabulary = names.vocabulary
    # crowd rule: intersection over the part's own area
    covered = coco_mask.iou([found.rles[i] for i in parts], [found.rles[i] for i in places], [1] * len(places))
    owner = np.array([vocabulary.label_objects.index(vocabulary.pairs[label][0]) for label in found.label[parts]])
    covered = np.where(owner[:, None] == found.label[places][None], np.asarray(covered).reshape(len(parts), -1), 0.0)
    best = covered.argmax(1)
    parent = found.parent.copy()
    parent[parts] = np.where(covered.max(1) >= share, places[best], -1)
    return replace(found, parent=parent)


def mean_chances(logits: Sequence[Float[Tensor, "R C+1"]]) -> Float[Tensor, "R C+1"]:
    """Class probabilities, the mean over stages."""
    return torch.stack([each.float().sigmoid() for each in logits]).mean(0)
