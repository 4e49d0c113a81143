"""Attention control (PartCLIPSeg eq. 7 to 9): separation keeps parts apart, enhancement keeps small parts alive.

N = present (image, class) pairs, G = (image, object) pairs, M = members: a class and the object it counts for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from partseg.labels import presence
from partseg.losses.term import LossInputs, share_of
from partseg.structures import Batch
from partseg.systems.part_clipseg.attention_maps import (
    AttentionMaps,
    MaskAttention,
    downsample_masks,
    masked_attention,
    min_max,
    smooth,
)
from partseg.systems.part_clipseg.network import ATTENTION
from partseg.utils.devices import send
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.tables import table

PartsOf = Literal["object", "image"]


@dataclass(frozen=True)
class _Members:
    """Which maps count for which (image, object) pair: entry m says that map `map[m]` is a part of `group[m]`.

    The pairs are where the labels are, the entries where the maps are.
    """

    image: Int[Tensor, " G"]
    object: Int[Tensor, " G"]
    map: Int[Tensor, " M"]
    group: Int[Tensor, " M"]


def _object_pairs(
    parts: Bool[Tensor, "B K"], objects: Int[Tensor, "B H W"], *, vocabulary: Vocabulary, parts_of: PartsOf
) -> Bool[Tensor, "B O"]:
    """Pairs a term averages over. `object`: objects with a part label. `image`: all objects of images with any part."""
    if parts_of == "image":
        return presence(objects, vocabulary.num_objects) & parts.any(1, keepdim=True)
    object_of = table(vocabulary, "object_of", device=parts.device)
    pairs = torch.zeros(len(parts), vocabulary.num_objects, dtype=torch.int, device=parts.device)
    return pairs.index_add(1, object_of, parts.int()) > 0


def _count_pairs(batch: Batch, parts_of: PartsOf) -> Float[Tensor, ""]:
    parts = presence(batch.object_part, batch.vocabulary.num_object_parts)
    return _object_pairs(parts, batch.object, vocabulary=batch.vocabulary, parts_of=parts_of).sum().double()


def _members(inputs: LossInputs, *, maps: AttentionMaps, parts_of: PartsOf) -> _Members:
    vocabulary = inputs.batch.vocabulary

    def compute() -> _Members:
        pairs = _object_pairs(maps.present, inputs.batch.labels[1], vocabulary=vocabulary, parts_of=parts_of)
        image, obj = pairs.nonzero(as_tuple=True)
        belongs = image[:, None] == maps.image
        if parts_of == "object":
            object_of = table(vocabulary, "object_of", device=image.device)
            belongs = belongs & (obj[:, None] == object_of[maps.object_part])
        group, member = belongs.nonzero(as_tuple=True)
        return _Members(image, obj, send(member, maps.maps.device), send(group, maps.maps.device))

    return inputs.shared(("members", parts_of), compute)  # all options find the same classes in the same order


def _maps(inputs: LossInputs, options: MaskAttention) -> AttentionMaps:
    def compute() -> AttentionMaps:
        labels, _ = inputs.batch.labels
        return masked_attention(inputs.outputs.attention, labels, vocabulary=inputs.batch.vocabulary, options=options)

    return inputs.shared(options, compute)


def _mean(values: Float[Tensor, " G"], counts: Mapping[str, Tensor], *, divide_by_batch: bool) -> Float[Tensor, ""]:
    """Sum over this micro-batch's pairs, divided by the pairs of the global batch (official: and by its images)."""
    scale = share_of(counts["pairs"])
    if divide_by_batch:
        scale = scale / counts["images"]
    return values.sum() * scale.to(values.dtype)


def _check_parts_of(parts_of: str) -> None:
    if parts_of not in ("object", "image"):
        raise ValueError(f"parts_of is {parts_of!r}; allowed are 'object' and 'image'")


class Separation:
    """Share of the object's cells that more than one of its parts attends to (eq. 7, 8), mean over (image, object).

    A cell is on for a part where its normalised, smoothed map reaches `gamma` (`strict`: exceeds it) inside the
    object's mask; the value is |cells on for two or more| / |cells on for one or more|. Counting has no gradient. With
    `surrogate: sigmoid` the value stays and the gradient is that of the same ratio where on is replaced by
    s = sigmoid((map - gamma) / temperature): expected cells with two or more on, by expected cells with one or more.
    `surrogate: none` sends no gradient; the published runs had none.
    `parts_of: image` counts every part of the image for each of its objects and `divide_by_batch` divides by the
    number of images once more; the authors do both. Equation 8 also divides by the number of parts |C|; the authors'
    code does not, and neither do we: a ratio of cells needs no such factor, and their weight of 0.1 goes without it.
    """

    def __init__(
        self,
        *,
        maps: MaskAttention,
        gamma: float = 0.3,
        strict: bool = False,
        smoothing_sigma: float = 0.5,
        surrogate: Literal["sigmoid", "none"] = "sigmoid",
        temperature: float = 0.1,
        parts_of: PartsOf = "object",
        divide_by_batch: bool = False,
    ) -> None:
        _check_parts_of(parts_of)
        if surrogate not in ("sigmoid", "none"):
            raise ValueError(f"surrogate is {surrogate!r}; allowed are 'sigmoid' and 'none'")
        self.maps = maps
        self.gamma = gamma
        self.strict = strict
        self.smoothing_sigma = smoothing_sigma
        self.surrogate = surrogate
        self.temperature = temperature
        self.parts_of = parts_of
        self.divide_by_batch = divide_by_batch

    @property
    def reads(self) -> tuple[str, ...]:
        """Decoder layers whose queries and keys the term reads."""
        return tuple(f"{ATTENTION}{layer}" for layer in self.maps.layers)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """(image, object) pairs (`pairs`)."""
        return {"pairs": _count_pairs(batch, self.parts_of)}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        maps = _maps(inputs, self.maps)
        members = _members(inputs, maps=maps, parts_of=self.parts_of)
        normalised = smooth(min_max(maps.maps), self.smoothing_sigma).flatten(1)[members.map]
        inside = self._object_masks(inputs, members, grid=(maps.maps.shape[1], maps.maps.shape[2]))
        on = normalised > self.gamma if self.strict else normalised >= self.gamma
        num_on = _sum_groups((on & inside[members.group]).to(normalised.dtype), members)
        ratio = (num_on > 1).sum(1).to(normalised.dtype) / (num_on >= 1).sum(1).clamp(min=1)
        if self.surrogate == "sigmoid":
            soft = _soft_ratio((normalised - self.gamma) / self.temperature, inside=inside, members=members)
            ratio = ratio + (soft - soft.detach())
        return _mean(ratio, counts, divide_by_batch=self.divide_by_batch)

    def _object_masks(self, inputs: LossInputs, members: _Members, *, grid: tuple[int, int]) -> Bool[Tensor, "G T"]:
        _, objects = inputs.batch.labels
        masks = downsample_masks(
            objects, inputs.batch.vocabulary.num_objects, grid=grid, mode=self.maps.mask_downsample
        )
        return send(masks[members.image, members.object] > 0, members.map.device)


def _sum_groups(values: Float[Tensor, "M T"], members: _Members) -> Float[Tensor, "G T"]:
    return values.new_zeros(len(members.image), values.shape[1]).index_add(0, members.group, values)


def _soft_ratio(score: Float[Tensor, "M T"], *, inside: Bool[Tensor, "G T"], members: _Members) -> Float[Tensor, " G"]:
    """Expected cells with two or more parts on, by expected cells with one or more, parts on with sigmoid(score).

    none = prod(1 - s) and exactly one = sum_c s_c / (1 - s_c) * none, both through logarithms: s_c / (1 - s_c) is
    exp(score_c), which overflows on its own.
    """
    log_none = _sum_groups(F.logsigmoid(-score), members)
    exactly_one = _sum_groups(torch.exp(score + log_none[members.group]), members)
    at_least_one = -torch.expm1(log_none)
    two_or_more = (at_least_one - exactly_one).clamp(min=0)
    return (two_or_more * inside).sum(1) / ((at_least_one * inside).sum(1) + 1e-9)


class Enhancement:
    """1 - the lowest, over an object's parts, of the highest attention inside the part (eq. 9), mean over objects.

    The maps are smoothed but not normalised. `maximum_over: image` looks for the highest value in the whole map (the
    authors do). `reduction: softmin` replaces the lowest by -t log mean exp(-x / t), t = `temperature`, so that every
    part gets a share of the gradient and not the lowest alone. A mask that vanished on the token grid counts as 0.
    `parts_of` and `divide_by_batch` as in Separation.
    """

    def __init__(
        self,
        *,
        maps: MaskAttention,
        smoothing_sigma: float = 0.5,
        maximum_over: Literal["mask", "image"] = "mask",
        reduction: Literal["min", "softmin"] = "min",
        temperature: float = 0.05,
        parts_of: PartsOf = "object",
        divide_by_batch: bool = False,
    ) -> None:
        _check_parts_of(parts_of)
        if maximum_over not in ("mask", "image"):
            raise ValueError(f"maximum_over is {maximum_over!r}; allowed are 'mask' and 'image'")
        if reduction not in ("min", "softmin"):
            raise ValueError(f"reduction is {reduction!r}; allowed are 'min' and 'softmin'")
        self.maps = maps
        self.smoothing_sigma = smoothing_sigma
        self.maximum_over = maximum_over
        self.reduction = reduction
        self.temperature = temperature
        self.parts_of = parts_of
        self.divide_by_batch = divide_by_batch

    @property
    def reads(self) -> tuple[str, ...]:
        """Decoder layers whose queries and keys the term reads."""
        return tuple(f"{ATTENTION}{layer}" for layer in self.maps.layers)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """(image, object) pairs (`pairs`)."""
        return {"pairs": _count_pairs(batch, self.parts_of)}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        maps = _maps(inputs, self.maps)
        members = _members(inputs, maps=maps, parts_of=self.parts_of)
        smoothed = smooth(maps.maps, self.smoothing_sigma).flatten(1)
        if self.maximum_over == "mask":
            # Attention is never negative, so 0 outside the mask cannot win, and a vanished mask gets 0.
            smoothed = smoothed * (maps.weights > 0)
        highest = smoothed.amax(1)[members.map]
        return _mean(1 - self._lowest(highest, members), counts, divide_by_batch=self.divide_by_batch)

    def _lowest(self, highest: Float[Tensor, " M"], members: _Members) -> Float[Tensor, " G"]:
        lowest = highest.new_full((len(members.image),), torch.inf)
        lowest = lowest.scatter_reduce(0, members.group, highest, "amin")
        if self.reduction == "min":
            return lowest
        # Shifted by the lowest value, so that no exponential overflows.
        shift = lowest.detach()
        terms = torch.exp((shift[members.group] - highest) / self.temperature)
        total = torch.zeros_like(shift).index_add(0, members.group, terms)
        size = torch.zeros_like(shift).index_add(0, members.group, torch.ones_like(terms))
        return shift - self.temperature * torch.log(total / size)
