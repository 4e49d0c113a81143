"""Parts of a new object from a labelled picture that looks like it (paper section 3.3): match, transfer, snap, name.

Legend: T cells of the new picture, S cells of the base picture, N part instances of the base picture, M detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor
from torchvision.ops import box_iou

from partseg.geometry import Size
from partseg.systems.vlpart.dino import Descriptors
from partseg.vocabulary.names import Vocabulary

FOREGROUND = 0.05
"""Least saliency of a cell that may show the object."""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "body": ("body", "torso"),
    "torso": ("torso", "body"),
    "paw": ("hand", "foot", "paw"),
    "cap": ("mouth", "cap"),
}
"""What a base part may be called on another object, in this order; others keep their name."""


@dataclass(frozen=True)
class PseudoPart:
    """A part found in a new picture: the detector's box, how well it fits the transferred mask, and that mask."""

    label: int
    box: Float[np.ndarray, 4]
    score: float
    mask: Bool[np.ndarray, "h w"] | None


def nearest(query: Float[Tensor, " D"], database: Float[Tensor, "B D"]) -> int:
    """The base picture whose CLS token is most alike."""
    return int(F.cosine_similarity(query[None], database).argmax())


def matches(query: Descriptors, base: Descriptors) -> Int[Tensor, " T"]:
    """For each cell the base cell with the most similar key; one direction, as the paper's."""
    similarity = F.normalize(query.keys, dim=1) @ F.normalize(base.keys, dim=1).t()
    return similarity.argmax(1)


def transferred(
    masks: Bool[Tensor, "N h w"], base: Descriptors, query: Descriptors, match: Int[Tensor, " T"], *, size: Size
) -> Bool[Tensor, "N H W"]:
    """Masks of the base picture's parts on the new one of `size`; all false for parts that match nothing.

    A cell has a part if its match has any of it and the cell is salient; the largest connected piece is kept.
    """
    on_base = F.interpolate(masks[None].float(), base.grid, mode="bilinear", align_corners=False)[0] > 0
    moved = on_base.flatten(1)[:, match] & (query.saliency > FOREGROUND)
    pieces = [_largest(each.cpu().numpy()) for each in moved.view(-1, *query.grid)]
    kept = torch.from_numpy(np.stack(pieces)) if pieces else torch.zeros(0, *query.grid, dtype=torch.bool)
    return F.interpolate(kept[None].float(), size, mode="bilinear", align_corners=False)[0] > 0


def _largest(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The largest piece of a mask, diagonal neighbours connected."""
    pieces, count = ndimage.label(mask, np.ones((3, 3)))
    return pieces == 1 + np.bincount(pieces[pieces > 0] - 1).argmax() if count else mask


def boxes_around(masks: Bool[Tensor, "N H W"]) -> Float[Tensor, "N 4"]:
    """Boxes between pixel edges, zeros for an empty mask. The authors' lie half a pixel up-left of these."""
    found = torch.zeros(len(masks), 4)
    for row, mask in zip(found, masks):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        if len(rows):
            row[:] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return found


def snapped(
    boxes: Float[Tensor, "N 4"], detections: Float[Tensor, "M 4"], *, least: float = 0.3
) -> list[tuple[int, int, float]]:
    """(part, detection, overlap) of every part that a detection overlaps by more than `least`: its best one."""
    if not len(boxes) or not len(detections):
        return []
    overlap, best = box_iou(boxes, detections).max(1)
    return [(i, int(best[i]), float(overlap[i])) for i in range(len(boxes)) if overlap[i] > least]


def renamed(part: str, owner: str, vocabulary: Vocabulary) -> int | None:
    """The object-part of `owner` that a base part is on it: by its name or a synonym; None where it has none."""
    pairs = {pair: i for i, pair in enumerate(vocabulary.pairs)}
    return next((pairs[owner, name] for name in SYNONYMS.get(part, (part,)) if (owner, name) in pairs), None)


def parse(
    query: Descriptors,
    base: Descriptors,
    *,
    masks: Bool[Tensor, "N h w"],
    parts: Sequence[str],
    detections: Float[Tensor, "M 4"],
    owner: str,
    vocabulary: Vocabulary,
    size: Size,
) -> list[PseudoPart]:
    """Parts of `owner` in a new picture of `size`, from the base picture's part instances and their names."""
    moved = transferred(masks, base, query, matches(query, base), size=size)
    found = []
    for part, detection, overlap in snapped(boxes_around(moved), detections):
        label = renamed(parts[part], owner, vocabulary)
        if label is not None:
            found.append(PseudoPart(label, detections[detection].numpy(), overlap, moved[part].numpy()))
    return found
