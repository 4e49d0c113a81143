"""OPS: Mask2Former with one class, told the object that it cuts into parts by a fourth channel of its input.

Legend: B images, H W network size, h w mask size (a quarter), Q queries, D feature channels, S sets of predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from partseg.geometry import InputSpec, Region, Size
from partseg.labels import nearest_index
from partseg.prediction import Prediction, Segments
from partseg.structures import INSTANCE_LEVELS, Batch
from partseg.system import Words
from partseg.systems.ops.mask2former import Mask2FormerShape, build, predictions
from partseg.systems.ops.weights import Stem, layouts
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases
from partseg.weights.freeze import set_trainable
from partseg.weights.layouts import WeightLayout

IMAGE_MEAN = (123.675, 116.28, 103.53)
IMAGE_STD = (58.395, 57.12, 57.375)
INSIDE, OUTSIDE = (255 - 128) / 128, -1.0
"""The object's channel: a mask of 0 and 255, normalised with mean 128 and deviation 128."""


@dataclass(frozen=True)
class OpsOutputs:
    """Predictions of the learned queries, then after every layer; mask features, and where the object is."""

    classes: tuple[Float[Tensor, "B Q C"], ...]
    masks: tuple[Float[Tensor, "B Q h w"], ...]
    features: Float[Tensor, "B D h w"]
    inside: Bool[Tensor, "B H W"]


@dataclass(frozen=True)
class OpsPrompts:
    """Nothing is asked for; the vocabulary names the objects that are given."""

    vocabulary: Vocabulary

    def subset(self, kept: np.ndarray) -> OpsPrompts:
        """The same for fewer object-parts."""
        return OpsPrompts(self.vocabulary.subset(kept))


@dataclass(frozen=True)
class _Asked:
    """An object to be cut: its photo, its id (-1: the whole photo), its mask at the photo's size."""

    image: int
    object_id: int
    mask: Bool[Tensor, "h w"]


class Ops(nn.Module):
    """Parts of one given object at a time, or of the whole picture.

    `aware_before` is the object's mask as fourth channel, `aware_after` cuts every part with it; with neither nothing
    is given and the picture as a whole is cut. Photos have their shorter edge resized to `image_size`, the longer one
    at most to `long_edge`. `stem` is what becomes of weights for three channels
    (`weights.layouts`). `official_padding` fills the fourth channel beside the photo with 0, which is neither inside
    nor outside. Predictions are the `top` segments of score `min_score`; `objects_per_pass` bounds memory.
    """

    saves_memory = ("model.shape.queries",)
    passes = ("segment",)

    def __init__(
        self,
        shape: Mask2FormerShape | None = None,
        *,
        image_size: int = 400,
        long_edge: int = 666,
        aware_before: bool = True,
        aware_after: bool = True,
        stem: Stem = "rgb",
        official_padding: bool = False,
        trainable: Sequence[str] = ("*",),
        top: int = 100,
        min_score: float = 0.0,
        objects_per_pass: int = 8,
    ) -> None:
        super().__init__()
        if stem not in get_args(Stem):
            raise ValueError(f"model.stem={stem!r} is not one of {list(get_args(Stem))}")
        if top < 1 or objects_per_pass < 1 or not 0 <= min_score <= 1:
            raise ValueError(
                f"model.top={top} and model.objects_per_pass={objects_per_pass} start at 1, "
                f"model.min_score={min_score} is in 0..1"
            )
        self.shape = shape or Mask2FormerShape()
        self.input = InputSpec(
            (image_size, long_edge), resize="short_edge", divisor=32, needs_object=aware_before or aware_after
        )
        self.aware_before, self.aware_after = aware_before, aware_after
        self.stem: Stem = stem
        self.official_padding = official_padding
        self.top, self.min_score, self.objects_per_pass = top, min_score, objects_per_pass
        parts = build(self.shape, channels=4 if aware_before else 3)
        self.backbone, self.pixel_decoder, self.decoder, self.class_head = parts
        set_trainable(self, trainable)

    def train(self, mode: bool = True) -> Ops:
        """As every module, but transformers' encoder stays in evaluation mode.

        It has no dropout. In training it looks for infinite values after each layer and cuts them, which Mask2Former's
        authors do not: a wait for the device per layer, and no single graph to compile.
        """
        super().train(mode)
        self.pixel_decoder.encoder.eval()  # type: ignore[union-attr,operator]
        return self

    @property
    def weight_layouts(self) -> tuple[WeightLayout, ...]:
        """Mask2Former's names in detectron2, and ImageNet weights of the backbone."""
        return layouts(self.stem)

    def encode_text(self, words: Words) -> OpsPrompts:
        """The objects' names; ValueError for phrases."""
        if isinstance(words, Phrases):
            raise ValueError("OPS cuts an object into parts without names and knows no phrases; give a vocabulary")
        return OpsPrompts(words)

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> OpsOutputs:
        """Predictions for a batch of pictures, each about its given object; without one about all objects shown."""
        objects = batch.object if batch.given is None else batch.given
        if self.input.needs_object:
            inside = objects < batch.vocabulary.num_objects
        else:
            inside = self._photo(batch.images, batch.regions)
        return self.segment(self.pixels(batch.images, inside, batch.regions), inside)

    def segment(self, pixels: Float[Tensor, "B C H W"], inside: Bool[Tensor, "B H W"]) -> OpsOutputs:
        """The network on normalised pixels."""
        levels, features = self.features(pixels)
        classes, masks = predictions(self.decoder, self.class_head, levels, features)
        return OpsOutputs(classes, masks, features, inside)

    def features(self, pixels: Float[Tensor, "B C H W"]) -> tuple[list[Tensor], Float[Tensor, "B D h w"]]:
        """Encoded levels 1/32, 1/16, 1/8, and the mask features."""
        decoded = self.pixel_decoder(self.backbone(pixels).feature_maps)
        return list(decoded.multi_scale_features), decoded.mask_features

    def pixels(
        self, images: UInt8[Tensor, "B 3 H W"], inside: Bool[Tensor, "B H W"], regions: Sequence[Region] | None
    ) -> Float[Tensor, "B C H W"]:
        """Normalised RGB, zero beside the photo, and the object's channel."""
        mean = torch.tensor(IMAGE_MEAN, device=images.device)[:, None, None]
        std = torch.tensor(IMAGE_STD, device=images.device)[:, None, None]
        photo = self._photo(images, regions)
        rgb = (images.float() - mean) / std * photo[:, None]
        if not self.aware_before:
            return rgb
        mask = torch.where(inside, INSIDE, OUTSIDE)
        if self.official_padding:
            mask = mask * photo
        return torch.cat([rgb, mask[:, None]], dim=1)

    @staticmethod
    def _photo(images: Tensor, regions: Sequence[Region] | None) -> Bool[Tensor, "B H W"]:
        """Where the photos lie."""
        shown = torch.ones_like(images[:, 0], dtype=torch.bool)
        for row, (top, left, height, width) in zip(shown, regions or ()):
            row.fill_(False)[top : top + height, left : left + width] = True
        return shown

    def predict(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        prompts: OpsPrompts,
        *,
        sizes: Sequence[Size],
        regions: Sequence[Region] | None = None,
        given: Sequence[Int[Tensor, "h w"] | None] | None = None,
    ) -> list[Prediction]:
        """Parts without names, and the objects that were given as their parents.

        One pass of the network per object; ValueError where an object is needed and none is given.
        """
        places = list(regions or [(0, 0, *images.shape[2:])] * len(images))
        asked = self._objects(sizes, given, prompts.vocabulary, images.device)
        found = []
        for start in range(0, len(asked), self.objects_per_pass):
            found += self._cut(images, places, asked[start : start + self.objects_per_pass])
        return [
            self._segments([(a, cut) for a, cut in zip(asked, found) if a.image == i], size, prompts.vocabulary)
            for i, size in enumerate(sizes)
        ]

    def _objects(
        self,
        sizes: Sequence[Size],
        given: Sequence[Int[Tensor, "h w"] | None] | None,
        vocabulary: Vocabulary,
        device: torch.device,
    ) -> list[_Asked]:
        """Every object that is given in any photo, or each photo as a whole."""
        if not self.input.needs_object:
            return [_Asked(i, -1, torch.ones(size, dtype=torch.bool, device=device)) for i, size in enumerate(sizes)]
        if given is None or any(objects is None for objects in given):
            raise ValueError("OPS cuts given objects into parts: give an object map for every picture")
        asked = []
        for i, (objects, size) in enumerate(zip(given, sizes, strict=True)):
            assert objects is not None
            if tuple(objects.shape) != tuple(size):
                raise ValueError(f"the object map is {tuple(objects.shape)} (height, width), its picture is {size}")
            for object_id in objects[objects < vocabulary.num_objects].unique().tolist():
                asked.append(_Asked(i, object_id, objects.to(device) == object_id))
        return asked

    def _cut(
        self, images: UInt8[Tensor, "B 3 H W"], places: Sequence[Region], asked: Sequence[_Asked]
    ) -> list[tuple[Bool[Tensor, "n h w"], Float[Tensor, " n"]]]:
        """Part masks at the photo's size and their scores, for a few objects in one pass of the network."""
        rows = [each.image for each in asked]
        inside = torch.zeros(len(asked), *images.shape[2:], dtype=torch.bool, device=images.device)
        for view, each in zip(inside, asked):
            top, left, height, width = places[each.image]
            down, across = (nearest_index(*lengths) for lengths in zip(each.mask.shape, (height, width)))
            view[top : top + height, left : left + width] = each.mask[down][:, across]
        regions = [places[row] for row in rows]
        found = self.segment(self.pixels(images[rows], inside, regions), inside)
        cuts = []
        for classes, masks, each, region in zip(found.classes[-1], found.masks[-1], asked, regions):
            padded, (height, width) = (images.shape[2], images.shape[3]), each.mask.shape
            masks, scores = self._read(classes, masks, region, padded, (height, width))
            if self.aware_after:
                masks = masks & each.mask
            kept = masks.flatten(1).any(1) & (scores >= self.min_score)
            cuts.append((masks[kept], scores[kept]))
        return cuts

    def _read(
        self, classes: Float[Tensor, "Q C"], masks: Float[Tensor, "Q h w"], region: Region, padded: Size, size: Size
    ) -> tuple[Bool[Tensor, "n h w"], Float[Tensor, " n"]]:
        """The `top` masks by their best class; scores are its probability times the mean probability in the mask."""
        probability, best = classes.float().softmax(-1)[:, :-1].amax(-1).topk(min(self.top, len(classes)))
        top, left, height, width = region
        full = torch.empty(len(best), *size, dtype=torch.bool, device=masks.device)
        scores = torch.empty_like(probability)
        for row, query in enumerate(best.tolist()):  # one by one: 100 maps of a 12-megapixel photo are 5 GB
            logits = F.interpolate(masks[None, query, None].float(), padded, mode="bilinear", align_corners=False)
            logits = logits[..., top : top + height, left : left + width]
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0, 0]
            torch.gt(logits, 0, out=full[row])
            scores[row] = probability[row] * (logits.sigmoid() * full[row]).sum() / (full[row].sum() + 1e-6)
        return full, scores

    def _segments(
        self, cut: Sequence[tuple[_Asked, tuple[Tensor, Tensor]]], size: Size, vocabulary: Vocabulary
    ) -> Segments:
        """Parts of all objects of a photo, and the objects themselves."""
        given = [asked for asked, _ in cut if asked.object_id >= 0]
        counts = [len(scores) for _, (_, scores) in cut]
        nothing = torch.zeros(0, *size, dtype=torch.bool)
        number = sum(counts)
        parents = [number + i if given else -1 for i, count in enumerate(counts) for _ in range(count)]
        places = {name: i for i, name in enumerate(vocabulary.label_objects)}
        return Segments.from_masks(
            torch.cat([nothing, *(masks.cpu() for _, (masks, _) in cut), *(a.mask.cpu()[None] for a in given)]),
            scores=torch.cat([torch.zeros(0), *(scores.cpu() for _, (_, scores) in cut), torch.ones(len(given))]),
            level=[INSTANCE_LEVELS.index("object_part")] * number + [INSTANCE_LEVELS.index("object")] * len(given),
            label=[-1] * number + [places[vocabulary.objects[asked.object_id]] for asked in given],
            parent=parents + [-1] * len(given),
            levels=INSTANCE_LEVELS if self.input.needs_object else ("object_part",),
        )
