"""The typed things that travel between layers; every file below agrees on these and nothing else.

Shape legend, used in all model, loss and evaluation files:
    B images, H W network size, h w label size, K object-part classes, O objects with parts, P part names,
    E prompts (P parts, then O objects, then background), T image tokens without CLS, D channels.
The label levels are called `object_part`, `object` and `part` everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

IGNORE_LABEL = 65535
"""Nothing is known about this pixel (void, unseen in training, no part label): no loss, no score."""

BACKGROUND_LABEL = 65534
"""Object maps only: the pixel is known to carry none of the vocabulary's objects."""


@dataclass(frozen=True)
class Instance:
    """One annotated object of a record: its object id and its mask as COCO segmentation (polygons or RLE)."""

    object_id: int
    segmentation: object
    counted: bool = True
    """False for instances that a test list leaves out (seen objects of training images in ADE20K-Part-234)."""


@dataclass(frozen=True)
class Record:
    """One image of a data set, in detectron2's words; paths are absolute or relative to the working directory.

    `object_part_file_name` / `object_file_name` are label PNGs; `polygons` (object-part id, COCO segmentation) replace
    the part PNG in data sets that store polygons; `instances` replace the object PNG in data sets that store them.
    Ids in files are the data set's own: the mapper translates them with the vocabulary. Ids in `polygons` and
    `instances` are object-part and object ids of the label vocabulary. `label_bits`, of both PNGs, is 8 (255 means
    none) or 16 (65535 means none).
    """

    image_id: str
    file_name: str
    height: int | None = None
    width: int | None = None
    object_part_file_name: str | None = None
    object_file_name: str | None = None
    polygons: tuple[tuple[int, object], ...] | None = None
    instances: tuple[Instance, ...] | None = None
    label_bits: int = 8


@dataclass(frozen=True)
class Sample:
    """One mapped record. Training: label maps at network size. Evaluation: label maps at their own size.

    `object_part` holds 0..K-1 or IGNORE_LABEL; `object` holds 0..O-1, BACKGROUND_LABEL (no object of the vocabulary)
    or IGNORE_LABEL (unseen or void). `num_owner` counts, per pixel, the annotated instances of the object that owns the
    pixel's part label (how often a per-instance evaluation counts it), `num_foreign` the instances of other objects
    that cover it; both None where a data set has no instances (then every labelled pixel counts once).
    """

    image: UInt8[Tensor, "3 H W"]
    object_part: Int[Tensor, "h w"]
    object: Int[Tensor, "h w"]
    name: str
    file_name: str
    num_owner: UInt8[Tensor, "h w"] | None = None
    num_foreign: UInt8[Tensor, "h w"] | None = None


@dataclass(frozen=True)
class Batch:
    """Training samples stacked: images are uint8 RGB 0..255 (the model normalises), label maps int32."""

    images: UInt8[Tensor, "B 3 H W"]
    object_part: Int[Tensor, "B H W"]
    object: Int[Tensor, "B H W"]
    names: tuple[str, ...]

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """Copy of the batch on `device`."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            object_part=self.object_part.to(device, non_blocking=non_blocking),
            object=self.object.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """Copy of the batch in page-locked memory (called by the DataLoader)."""
        return replace(
            self,
            images=self.images.pin_memory(),
            object_part=self.object_part.pin_memory(),
            object=self.object.pin_memory(),
        )

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class EvalBatch:
    """Evaluation samples: images stacked at network size, everything else per image at its own size."""

    images: UInt8[Tensor, "B 3 H W"]
    samples: tuple[Sample, ...]

    def pin_memory(self) -> EvalBatch:
        """Copy with page-locked images; labels stay where they are, they are used on the CPU or copied one by one."""
        return replace(self, images=self.images.pin_memory())

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class TextFeatures:
    """Text side of a vocabulary, all a model needs to know of names. `background` is the learned background vector.

    CLIPSeg fills `object_part` only; PartCLIPSeg fills `part` and `object` and combines them per pair.
    """

    background: Float[Tensor, "1 D"]
    part: Float[Tensor, "P D"] | None = None
    object: Float[Tensor, "O D"] | None = None
    object_part: Float[Tensor, "K D"] | None = None


@dataclass(frozen=True)
class DecoderAttention:
    """Queries and keys of one decoder layer for all prompts: attention rows are computed from them on demand.

    Token 0 is CLS; tokens 1..T are the `grid` (rows, columns) in row-major order. Prompt order: parts, objects, bg.
    Row i of the map of prompt e, image b is softmax(query[b, e, :, i] @ key[b, e].T * scale), mean over heads.
    """

    query: Float[Tensor, "B E heads tokens d"]
    key: Float[Tensor, "B E heads tokens d"]
    scale: float
    grid: tuple[int, int]


@dataclass(frozen=True)
class Outputs:
    """What every model returns, in training and evaluation alike; background is the last channel where there is one.

    Logits are at network size. `object` and `part` are None for models without those heads (CLIPSeg), `part` also where
    it was not asked for. `attention` maps a decoder layer index to its queries and keys, and is empty unless the model
    was asked to keep them.
    """

    object_part: Float[Tensor, "B K+1 H W"]
    object: Float[Tensor, "B O+1 H W"] | None = None
    part: Float[Tensor, "B P H W"] | None = None
    attention: dict[int, DecoderAttention] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Logits of one image at network size and the size they are to be read at (the label's own, or the photo's)."""

    object_part: Float[Tensor, "K+1 H W"]
    object: Float[Tensor, "O+1 H W"] | None
    size: tuple[int, int]


def stack_images(samples: Sequence[Sample]) -> UInt8[Tensor, "B 3 H W"]:
    """Images of the samples as one tensor."""
    return torch.stack([sample.image for sample in samples])
