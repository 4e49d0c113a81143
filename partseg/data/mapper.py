"""Record to Sample: read the files, translate ids to the vocabulary in use, apply geometry.

`TrainMapper` hides unseen classes and works at network size; `EvalMapper` keeps labels at their own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from partseg.data import colour, io
from partseg.data.given_objects import GivenObjects
from partseg.data.labels import InstanceSource, LabelledPhoto, LabelReader
from partseg.data.phrases import PhraseSource, about_phrase, all_phrases
from partseg.geometry import (
    ChannelOrder,
    Geometry,
    InputSpec,
    LabelRule,
    Size,
    letterbox,
    random_box,
    short_edge,
    to_tensor,
)
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import INSTANCE_LEVELS, Record, Sample
from partseg.vocabulary.names import Vocabulary

TrainResize = Literal["squash", "short_edge", "jitter", "letterbox"]
About = Literal["image", "object", "phrase"]
Choices = int | Sequence[int] | None


class TrainMapper:
    """Training samples at network size; every random choice comes from the given rng.

    `size` is the network's (a side, or height and width), and `resize` how a picture gets there, after a random crop of
    `crop_scale` of its area, if that is set:
        squash      to `size` without keeping the aspect, through `short_edge` and `long_edge` first if they are given
        short_edge  the shorter side to `short_edge` (of several, a random one), the longer one at most to `long_edge`;
                    then a random window of `size`, or all of it for size=null
        jitter      into `size` times a random factor of `scale_jitter`, keeping the aspect; then a random window of
        `size`
        letterbox   into the middle of `size`, keeping the aspect
    A window larger than the picture is filled up with `fill`. `jitter` is the strength of colour changes, or "ssd" for
    those of `colour.ssd_jitter`.

    Unseen objects become IGNORE_LABEL, or BACKGROUND_LABEL in object maps with `unseen_as_background` (as official).
    `label_rule` is that of `Geometry` (official: "corner"). `drop_without_parts` maps a picture on which no part label
    of the vocabulary is left to None, and the data set then draws another (official, detectron2's MapDataset); where
    the vocabulary has objects only, one without an instance.
    `instances` adds instances to the sample. `about="object"` makes it about one object of the picture, drawn at
    random: labels of others are left out and `given` is its mask; `about="phrase"` adds one phrase and its mask, a
    referring expression of the record or, where it has none, a class that the picture shows in the words of `phrases`.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = 352,
        *,
        resize: TrainResize = "squash",
        flip_probability: float = 0.5,
        unseen_as_background: bool = False,
        channel_order: ChannelOrder = "rgb",
        short_edge: Choices = None,
        long_edge: int | None = None,
        scale_jitter: tuple[float, float] = (0.1, 2.0),
        crop_scale: tuple[float, float] | None = None,
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        fill: Sequence[int] = (0, 0, 0),
        jitter: float | Literal["ssd"] = 0.0,
        label_rule: LabelRule = "centre",
        drop_without_parts: bool = False,
        instances: InstanceSource | None = None,
        about: About = "image",
        phrases: PhraseSource | None = None,
    ) -> None:
        self.size: Size | None = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])
        self.resize = _one_of("resize", resize, get_args(TrainResize))
        self.flip_probability = flip_probability
        self.unseen_as_background = unseen_as_background
        self.channel_order = _one_of("channel_order", channel_order, get_args(ChannelOrder))
        self.short_edges = () if short_edge is None else (short_edge,) if isinstance(short_edge, int) else short_edge
        self.long_edge = long_edge
        self.scale_jitter = (float(scale_jitter[0]), float(scale_jitter[1]))
        self.crop_scale = None if crop_scale is None else (float(crop_scale[0]), float(crop_scale[1]))
        self.crop_ratio = (float(crop_ratio[0]), float(crop_ratio[1]))
        self.fill = (int(fill[0]), int(fill[1]), int(fill[2]))
        self.jitter: float | str = jitter
        self.label_rule = _one_of("label_rule", label_rule, get_args(LabelRule))
        self.drop_without_parts = drop_without_parts
        self.instances = instances if instances is None else _one_of("instances", instances, get_args(InstanceSource))
        self.about = _one_of("about", about, get_args(About))
        self.phrases = phrases or PhraseSource()
        self._readers: dict[tuple[str, str], LabelReader] = {}
        self._check()

    def _check(self) -> None:
        if any(length < 1 for length in (*(self.size or ()), *self.short_edges)):
            raise ValueError(f"size={self.size} and short_edge={list(self.short_edges)} must be positive")
        if self.size is None and self.resize != "short_edge":
            raise ValueError(f"size=null keeps pictures of any size, which resize={self.resize} does not: give a size")
        if self.resize == "short_edge" and not self.short_edges:
            raise ValueError("resize=short_edge needs short_edge=<pixels>, or a list of them")
        if self.resize == "squash" and len(self.short_edges) > 1:
            raise ValueError(f"resize=squash goes through one short_edge, not {list(self.short_edges)}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability={self.flip_probability} is not in 0..1")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale={self.crop_scale} must be two numbers with 0 < low <= high <= 1")
        if not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError(f"scale_jitter={self.scale_jitter} must be two numbers with 0 < low <= high")
        if self.jitter != "ssd" and not (isinstance(self.jitter, int | float) and 0 <= self.jitter < 1):
            raise ValueError(f"jitter={self.jitter} is not in 0..1, nor 'ssd'")

    def __call__(
        self, record: Record, *, label_vocabulary: Vocabulary, vocabulary: Vocabulary, rng: np.random.Generator
    ) -> Sample | None:
        """Sample with both label maps at network size, in ids of `vocabulary`; None for a picture that is dropped."""
        key = (label_vocabulary.key, vocabulary.key)
        if key not in self._readers:
            hidden = BACKGROUND_LABEL if self.unseen_as_background else IGNORE_LABEL
            self._readers[key] = LabelReader(label_vocabulary, vocabulary, hidden=hidden)
        reader = self._readers[key]
        image = _read_image(record)
        geometry = self._geometry(image.height, image.width, rng)
        photo = LabelledPhoto(record, image, geometry, reader.maps(record, image, geometry), reader)
        object_part = reader.part.take(photo.maps.object_part)
        if self.drop_without_parts and len(vocabulary) and (object_part == IGNORE_LABEL).all():
            return None
        objects = reader.object.take(photo.maps.object)
        if geometry.flip:
            object_part = vocabulary.mirror_lut.take(object_part)
        shown = geometry.image(image)
        if isinstance(self.jitter, str):
            shown = colour.ssd_jitter(shown, rng=rng)
        elif self.jitter:
            shown = colour.jitter(shown, strength=self.jitter, rng=rng)
        sample = Sample(
            image=to_tensor(shown, channel_order=self.channel_order),
            object_part=torch.from_numpy(object_part),
            object=torch.from_numpy(objects),
            name=record.image_id,
            file_name=record.file_name,
            instances=self.instances and reader.instances(record, image, geometry, photo.maps, self.instances),
            image_labels=tuple(i for i in reader.label_object[list(record.image_labels)].tolist() if i != IGNORE_LABEL),
            region=None if geometry.region == (0, 0, *geometry.size) else geometry.region,
        )
        if self.drop_without_parts and not len(vocabulary) and not sample.instances:
            return None
        return self._focused(sample, photo, rng)

    def _focused(self, sample: Sample, photo: LabelledPhoto, rng: np.random.Generator) -> Sample | None:
        """The sample about one object or one phrase, None where the picture shows none."""
        if self.about == "object":
            return about_object(sample, vocabulary=photo.reader.ours, rng=rng)
        if self.about == "phrase":
            return about_phrase(sample, photo, self.phrases, rng=rng)
        return sample

    def _geometry(self, height: int, width: int, rng: np.random.Generator) -> Geometry:
        flip = bool(rng.random() < self.flip_probability)
        box = random_box(height, width, scale=self.crop_scale, ratio=self.crop_ratio, rng=rng)
        rows, columns = box[3] - box[1], box[2] - box[0]
        if self.resize == "squash":
            assert self.size is not None
            via = [short_edge(rows, columns, edge, self.long_edge) for edge in self.short_edges]
            return Geometry(box, (*via, self.size), flip, self.label_rule)
        if self.resize == "letterbox":
            assert self.size is not None
            inside, offset = letterbox(rows, columns, self.size)
            return Geometry(box, (inside,), flip, self.label_rule, canvas=self.size, offset=offset, fill=self.fill)
        if self.resize == "short_edge":
            edge = int(rng.choice(self.short_edges)) if len(self.short_edges) > 1 else self.short_edges[0]
            resized = short_edge(rows, columns, edge, self.long_edge)
        else:
            assert self.size is not None
            factor = rng.uniform(*self.scale_jitter) * min(self.size[0] / rows, self.size[1] / columns)
            resized = max(1, round(rows * factor)), max(1, round(columns * factor))
        if self.size is None:
            return Geometry(box, (resized,), flip, self.label_rule)
        # where the window lies on a larger picture; a smaller one stays at the upper left, filled up below and beside
        top, left = (int(rng.integers(0, max(0, r - s) + 1)) for r, s in zip(resized, self.size))
        return Geometry(box, (resized,), flip, self.label_rule, canvas=self.size, offset=(-top, -left), fill=self.fill)


class EvalMapper:
    """Evaluation samples: the image as `input` wants it, labels untouched at their own size; nothing is random.

    Without an `input` the photo stays as it is, for those who only read labels.

    `objects` are those of some object segmenter, which become `given`: a folder with `<image id>.png` in the data set's
    object ids (8 or 16 bits, all ones: none), or a COCO file. `instances` adds instances to score against, `phrases`
    what to ask a picture for, `photo` the photo at its own size.
    """

    def __init__(
        self,
        input: InputSpec | None = None,
        *,
        channel_order: ChannelOrder = "rgb",
        objects: str | Path | None = None,
        instances: InstanceSource | None = None,
        phrases: PhraseSource | None = None,
        photo: bool = False,
    ) -> None:
        self.input = input
        self.channel_order = _one_of("channel_order", channel_order, get_args(ChannelOrder))
        self.objects = None if objects is None else GivenObjects(objects)
        self.instances = instances if instances is None else _one_of("instances", instances, get_args(InstanceSource))
        self.phrases = phrases
        self.photo = photo
        self._readers: dict[tuple[str, str], LabelReader] = {}

    def __call__(
        self,
        record: Record,
        *,
        label_vocabulary: Vocabulary,
        vocabulary: Vocabulary,
        rng: np.random.Generator | None = None,
    ) -> Sample:
        """Sample with label maps at their own size; `num_owner` and `num_foreign` where the record has instances."""
        key = (label_vocabulary.key, vocabulary.key)
        if key not in self._readers:
            self._readers[key] = LabelReader(label_vocabulary, vocabulary)
        reader = self._readers[key]
        image = _read_image(record)
        whole = Geometry((0, 0, image.width, image.height))
        maps = reader.maps(record, image, whole)
        geometry = whole if self.input is None else self.input.geometry(image.height, image.width)
        given = None
        if self.objects is not None:
            given = torch.from_numpy(self.objects.map_of(record, vocabulary, (image.height, image.width)))
        sample = Sample(
            image=to_tensor(geometry.image(image), channel_order=self.channel_order),
            object_part=torch.from_numpy(reader.part.take(maps.object_part)),
            object=torch.from_numpy(reader.object.take(maps.object)),
            name=record.image_id,
            file_name=record.file_name,
            num_owner=_optional_tensor(maps.num_owner),
            num_foreign=_optional_tensor(maps.num_foreign),
            instances=self.instances and reader.instances(record, image, whole, maps, self.instances),
            given=given,
            region=None if geometry.region == (0, 0, *geometry.size) else geometry.region,
            photo=to_tensor(image, channel_order=self.channel_order) if self.photo else None,
            checked=reader.checked(record),
        )
        if self.phrases is None:
            return sample
        return replace(
            sample, phrases=all_phrases(sample, LabelledPhoto(record, image, whole, maps, reader), self.phrases)
        )


def about_object(sample: Sample, *, vocabulary: Vocabulary, rng: np.random.Generator) -> Sample | None:
    """The sample about one of its objects: other objects' labels and instances are left out, `given` is its mask.

    The object is one instance where the sample has instances of objects, else all pixels of one class; None where the
    picture shows no object of the vocabulary.
    """
    kept = None
    if sample.instances is not None and (sample.instances.level == INSTANCE_LEVELS.index("object")).any():
        ids = torch.from_numpy(vocabulary.label_object_lut.copy())[sample.instances.label]
        is_object = (sample.instances.level == INSTANCE_LEVELS.index("object")) & (ids < vocabulary.num_objects)
        if not (is_object & sample.instances.has_mask).any():
            return None
        chosen = int(rng.choice((is_object & sample.instances.has_mask).nonzero().flatten().numpy()))
        object_id, mask = int(ids[chosen]), sample.instances.masks[chosen]
        kept = sample.instances.parent == chosen
        kept[chosen] = True
    else:
        present = sample.object[sample.object < vocabulary.num_objects].unique()
        if not len(present):
            return None
        object_id = int(rng.choice(present.numpy()))
        mask = sample.object == object_id
    owner = torch.from_numpy(vocabulary.object_lut.copy())[sample.object_part.long()]
    given = torch.full_like(sample.object, BACKGROUND_LABEL).masked_fill_(mask, object_id)
    return replace(
        sample,
        object_part=sample.object_part.masked_fill(~mask | (owner != object_id), IGNORE_LABEL),
        object=given,
        given=given,
        instances=sample.instances if kept is None or sample.instances is None else sample.instances.select(kept),
    )


def _read_image(record: Record) -> Image.Image:
    """The photo; turned by its orientation tag only where that is what the annotation was made on."""
    image = io.read_image(record.file_name)
    annotated = image.size if record.width is None or record.height is None else (record.width, record.height)
    if annotated != image.size:
        image = io.upright(image)
    if annotated != image.size:
        raise ValueError(
            f"{record.file_name} is {image.height} x {image.width} (height x width), its annotation says "
            f"{record.height} x {record.width}; use the pictures that the annotation was made for"
        )
    return image


Choice = TypeVar("Choice")


def _one_of(what: str, value: Choice, allowed: Sequence[object]) -> Choice:
    if value not in allowed:
        raise ValueError(f"{what}={value!r} is not one of {list(allowed)}")
    return value


def _optional_tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
