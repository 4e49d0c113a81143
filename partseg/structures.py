"""The typed things that travel between layers; every file below agrees on these and nothing else.

Shape legend, used in all system, loss and evaluation files:
    B images, H W network size, h w label size, K object-part classes, O objects with parts, P part names, N instances,
    T image tokens without CLS, D channels.
The label levels are called `object_part`, `object` and `part` everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from partseg.geometry import Region, Size
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.vocabulary.names import Vocabulary

InstanceLevel = Literal["object_part", "object"]
INSTANCE_LEVELS: tuple[InstanceLevel, ...] = ("object_part", "object")


@dataclass(frozen=True)
class Annotation:
    """One annotated thing of a record.

    `label` is an object-part id, or for objects the position in `label_objects`, which holds objects without parts too;
    -1 for a part without a name (a pseudo label of a system that names nothing), which is an instance and in no map.
    `segmentation` is COCO's (polygons or RLE); `box` (left, top, right, bottom in pixels) stands in where there is
    none. `parent` is the position of the part's object among the record's annotations. `score` is that of a pseudo
    label.
    """

    level: InstanceLevel
    label: int
    segmentation: object = None
    box: tuple[float, float, float, float] | None = None
    parent: int | None = None
    score: float | None = None
    counted: bool = True
    """False for instances that a test list leaves out (seen objects of training images in ADE20K-Part-234)."""


@dataclass(frozen=True)
class Phrase:
    """A referring expression of a record: its wordings, and the mask (COCO segmentation) that all of them name.

    `label` is the object-part that it is about, where it is about one.
    """

    texts: tuple[str, ...]
    segmentation: object
    label: int | None = None


@dataclass(frozen=True)
class Checked:
    """Classes, as (level, label), that a federated data set (LVIS, PACO) looked for in an image.

    `absent` are known not to be there, `partly` are there but not all outlined; of classes that are neither annotated
    nor absent nothing is known.
    """

    absent: frozenset[tuple[InstanceLevel, int]] = frozenset()
    partly: frozenset[tuple[InstanceLevel, int]] = frozenset()


class PhraseMask(NamedTuple):
    """A phrase in a picture: its mask, and the object-part that it is about (None: none in particular)."""

    text: str
    mask: Bool[Tensor, "h w"]
    label: int | None = None


@dataclass(frozen=True)
class Record:
    """One image of a data set, in detectron2's words; paths are absolute or relative to the working directory.

    `object_part_file_name` / `object_file_name` are label PNGs in the data set's own ids, `label_bits` deep: 8 (255
    means none) or 16 (65535 means none); the mapper translates them with the vocabulary. Where there is no PNG of a
    level its map is painted from `annotations`, later ones on top; object parts without objects imply their owners.
    `annotations=()` are those of a file that outlines nothing here, of which maps know nothing; None: no such file.
    `image_labels` are `label_objects` known to be somewhere in the image. An unlabelled image has none of all these.
    `class_name` is what the whole picture is of, where a data set says so (ImageNet's class), for phrases to use.
    `checked` says which classes were looked for; None: all.
    """

    image_id: str
    file_name: str
    height: int | None = None
    width: int | None = None
    object_part_file_name: str | None = None
    object_file_name: str | None = None
    annotations: tuple[Annotation, ...] | None = None
    image_labels: tuple[int, ...] = ()
    phrases: tuple[Phrase, ...] = ()
    class_name: str | None = None
    checked: Checked | None = None
    label_bits: int = 8
    label_values: tuple[int | None, ...] | None = None
    """The value of each object-part in the label PNG, None for one that has none; by default its id."""
    empty_values: tuple[int, ...] = ()
    """Values that mean no part, where `label_values` are given."""

    def of_level(self, level: InstanceLevel) -> list[Annotation]:
        """Annotations of one level, in file order."""
        return [a for a in self.annotations or () if a.level == level]


@dataclass(frozen=True)
class Instances:
    """Annotated instances in a picture: boxes (left, top, right, bottom) and masks at the picture's size.

    `level` indexes INSTANCE_LEVELS, `label` is as in `Annotation`, `parent` the position of the object of a part among
    these instances or -1. `has_mask` is false where only a box is known; its mask is empty then.
    """

    masks: Bool[Tensor, "N h w"]
    boxes: Float[Tensor, "N 4"]
    level: Int[Tensor, " N"]
    label: Int[Tensor, " N"]
    parent: Int[Tensor, " N"]
    has_mask: Bool[Tensor, " N"]
    counted: Bool[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, kept: Bool[Tensor, " N"]) -> Instances:
        """The instances where `kept` is true; parents that are left out become -1."""
        place = torch.where(kept, kept.long().cumsum(0) - 1, -1)
        parent = torch.where(self.parent >= 0, place[self.parent.clamp(min=0)], -1)
        chosen = {f.name: getattr(self, f.name)[kept] for f in fields(self)}
        return Instances(**{**chosen, "parent": parent[kept]})


@dataclass(frozen=True)
class Sample:
    """One mapped record. Training: everything at network size. Evaluation: labels at their own size.

    `object_part` holds 0..K-1 or IGNORE_LABEL; `object` holds 0..O-1, BACKGROUND_LABEL (no object of the vocabulary) or
    IGNORE_LABEL (unseen or void). `num_owner` counts, per pixel, the annotated instances of the object that owns the
    pixel's part label (how often a per-instance evaluation counts it), `num_foreign` the instances of other objects
    that cover it; both None where a data set has no instances (then every labelled pixel counts once). `instances` and
    `phrases` (exactly one in training) are there where the mapper was asked for them. `given` is an
    object map that is told beside the labels, as `object` in ids: in training that of the one object which the sample
    is about, in evaluation that of some segmenter. `region` is the part of `image` that the photo fills (None: all of
    it). `photo` is the whole photo at its own size, where the mapper was asked to keep it. `checked` is the record's,
    in the labels of `instances`.
    """

    image: UInt8[Tensor, "3 H W"]
    object_part: Int[Tensor, "h w"]
    object: Int[Tensor, "h w"]
    name: str
    file_name: str
    num_owner: UInt8[Tensor, "h w"] | None = None
    num_foreign: UInt8[Tensor, "h w"] | None = None
    instances: Instances | None = None
    image_labels: tuple[int, ...] = ()
    phrases: tuple[PhraseMask, ...] = ()
    given: Int[Tensor, "h w"] | None = None
    region: Region | None = None
    photo: UInt8[Tensor, "3 rows columns"] | None = None
    checked: Checked | None = None

    @property
    def size(self) -> Size:
        """Height and width of the labels."""
        return self.object_part.shape[0], self.object_part.shape[1]

    def unlabelled(self) -> Sample:
        """The picture and the object map that is told, without any label."""
        instances = self.instances
        return replace(
            self,
            object_part=torch.full_like(self.object_part, IGNORE_LABEL),
            object=torch.full_like(self.object, IGNORE_LABEL),
            num_owner=None,
            num_foreign=None,
            instances=None if instances is None else instances.select(torch.zeros(len(instances), dtype=torch.bool)),
            image_labels=(),
            phrases=(),
        )


@dataclass(frozen=True)
class Batch:
    """What a system trains on in one micro-batch; all of one source, in ids of one vocabulary.

    Images are uint8 0..255 (the system normalises), filled up to a common size where they differ: `regions` say which
    part the photo fills. Label maps are int32. What a source does not have is None: `instances` and `phrases` (text and
    mask per image), `given` object maps, `image_labels` per image.
    """

    images: UInt8[Tensor, "B 3 H W"]
    object_part: Int[Tensor, "B H W"]
    object: Int[Tensor, "B H W"]
    names: tuple[str, ...]
    vocabulary: Vocabulary
    source: str = ""
    regions: tuple[Region, ...] | None = None
    instances: tuple[Instances, ...] | None = None
    image_labels: tuple[tuple[int, ...], ...] | None = None
    phrases: tuple[str, ...] | None = None
    phrase_masks: Bool[Tensor, "B H W"] | None = None
    given: Int[Tensor, "B H W"] | None = None
    at_hand: tuple[Int[Tensor, "B H W"], Int[Tensor, "B H W"]] | None = None
    """`object_part` and `object` where the loader made them, once the batch has moved; see `labels`."""

    @property
    def labels(self) -> tuple[Int[Tensor, "B H W"], Int[Tensor, "B H W"]]:
        """`object_part` and `object` on the host: who looks which classes there are does not wait for the device."""
        return self.at_hand or (self.object_part, self.object)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """Copy of the batch on `device`."""
        moved = _mapped(replace(self, at_hand=None), lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, at_hand=self.labels)

    def pin_memory(self) -> Batch:
        """Copy of the batch in page-locked memory (called by the DataLoader)."""
        return _mapped(self, lambda tensor: tensor.pin_memory())

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class EvalBatch:
    """Evaluation samples: images stacked (filled up to a common size), everything else per image at its own size."""

    images: UInt8[Tensor, "B 3 H W"]
    samples: tuple[Sample, ...]

    def pin_memory(self) -> EvalBatch:
        """Copy with page-locked images; labels stay where they are, they are used on the CPU or copied one by one."""
        return replace(self, images=self.images.pin_memory())

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class Outputs:
    """What a dense system returns in training; background is the last channel where there is one.

    Logits are at network size. A system with more to say returns a subclass, or a dataclass of its own: the trainer
    hands it to the criterion as it is. What no loss term reads may be None.
    """

    object_part: Float[Tensor, "B K+1 H W"] | None = None
    object: Float[Tensor, "B O+1 H W"] | None = None
    part: Float[Tensor, "B P H W"] | None = None


def collate(samples: Sequence[Sample], *, vocabulary: Vocabulary, source: str = "") -> Batch:
    """Training samples as one batch; pictures and maps of different sizes are filled up at the bottom and the right."""
    images, regions = stack_images(samples)
    size = (images.shape[2], images.shape[3])
    first = samples[0]
    return Batch(
        images=images,
        object_part=torch.stack([_filled(sample.object_part, size, IGNORE_LABEL) for sample in samples]),
        object=torch.stack([_filled(sample.object, size, IGNORE_LABEL) for sample in samples]),
        names=tuple(sample.name for sample in samples),
        vocabulary=vocabulary,
        source=source,
        regions=regions,
        instances=None if first.instances is None else tuple(_instances(sample, size) for sample in samples),
        image_labels=tuple(s.image_labels for s in samples) if any(s.image_labels for s in samples) else None,
        phrases=tuple(s.phrases[0].text for s in samples) if first.phrases else None,
        phrase_masks=torch.stack([_filled(s.phrases[0].mask, size, False) for s in samples]) if first.phrases else None,
        given=None
        if first.given is None
        else torch.stack([_filled(s.given, size, BACKGROUND_LABEL) for s in samples if s.given is not None]),
    )


def stack_images(samples: Sequence[Sample]) -> tuple[UInt8[Tensor, "B 3 H W"], tuple[Region, ...] | None]:
    """Images of the samples as one tensor, and where the photos lie in it; None: everywhere."""
    sizes = {sample.image.shape for sample in samples}
    if len(sizes) == 1 and all(sample.region is None for sample in samples):
        return torch.stack([sample.image for sample in samples]), None
    images = stack_pictures([sample.image for sample in samples])
    return images, tuple(sample.region or (0, 0, *sample.image.shape[1:]) for sample in samples)


def stack_pictures(pictures: Sequence[UInt8[Tensor, "3 h w"]]) -> UInt8[Tensor, "B 3 H W"]:
    """Pictures of any sizes as one tensor, filled up with zeros at the bottom and the right."""
    size = max(p.shape[1] for p in pictures), max(p.shape[2] for p in pictures)
    return torch.stack([_filled(picture, size, 0) for picture in pictures])


def _filled(tensor: Tensor, size: Size, value: int | bool) -> Tensor:
    """A tensor [..., h, w] at the top left of one of `size`."""
    if tensor.shape[-2:] == size:
        return tensor
    sheet = tensor.new_full((*tensor.shape[:-2], *size), value)
    sheet[..., : tensor.shape[-2], : tensor.shape[-1]] = tensor
    return sheet


def _instances(sample: Sample, size: Size) -> Instances:
    assert sample.instances is not None
    return replace(sample.instances, masks=_filled(sample.instances.masks, size, False))


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy of nested dataclasses and tuples with `function` applied to every tensor; other things stay."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, function) for item in value)
    if isinstance(value, Batch | Instances):
        return replace(value, **{f.name: _mapped(getattr(value, f.name), function) for f in fields(value)})
    return value
