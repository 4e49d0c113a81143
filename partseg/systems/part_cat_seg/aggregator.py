"""Two aggregations: parts and objects first, then object-parts, whose cost comes of the maps of the first one.

Legend: B images, P parts, O objects, K object-parts, C text width, h w cells, D cost width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from partseg.systems.cat_seg.aggregator import (
    Aggregator,
    AggregatorShape,
    CostEmbedding,
    Guidance,
    aggregation_layers,
    cost_volume,
)
from partseg.systems.part_cat_seg.classes import CompetingClassLayer


@dataclass(frozen=True)
class PartAggregatorShape(AggregatorShape):
    """`start_pairs_from_weights`: loading CAT-Seg's weights starts the layers of pairs, too.

    The authors copy before they load, so that these layers start at random.
    """

    start_pairs_from_weights: bool = True


@dataclass(frozen=True)
class PartTexts:
    """Prompts of parts, objects and background, those of object-parts and background, and how these are paired.

    `part_row` and `object_row` are the positions in `shared` of each pair's part and object; background is its own.
    """

    shared: Float[Tensor, "P+O+1 prompts C"]
    pairs: Float[Tensor, "K+1 prompts C"]
    part_row: Int[Tensor, " K+1"]
    object_row: Int[Tensor, " K+1"]


@dataclass(frozen=True)
class PartVolumes:
    """Logits at four times the cells, of parts, objects and background and of object-parts and background.

    `shared_cost` and `pair_cost` are the cosines that they begin with, averaged over the prompts; on request.
    """

    shared: Float[Tensor, "B P+O+1 4*h 4*w"] | None
    pairs: Float[Tensor, "B K+1 4*h 4*w"]
    shared_cost: Float[Tensor, "B P+O+1 h w"] | None = None
    pair_cost: Float[Tensor, "B K+1 h w"] | None = None


class PartAggregator(Aggregator):
    """CAT-Seg's aggregator over parts and objects, and layers of their own for pairs; the decoder is shared."""

    class_layer = CompetingClassLayer

    def __init__(
        self,
        shape: AggregatorShape,
        *,
        text_dim: int,
        appearance_dim: int,
        decoder_guidance_dims: Sequence[int],
        class_chunk: int,
        recompute: bool,
    ) -> None:
        if shape.padding is not None:
            raise ValueError(f"model.aggregator.padding={shape.padding}: this class attention has none; set it to null")
        super().__init__(
            shape,
            text_dim=text_dim,
            appearance_dim=appearance_dim,
            decoder_guidance_dims=decoder_guidance_dims,
            class_chunk=class_chunk,
            recompute=recompute,
        )
        self.pair_projection = nn.Conv2d(2 * shape.hidden, text_dim, 1)
        self.pair_embedding = CostEmbedding(shape.prompts, shape.hidden)
        self.pair_layers = aggregation_layers(shape, self.class_layer)
        self.start_pairs()

    def start_pairs(self) -> None:
        """Copy the first aggregation into that of the pairs: its start, also after loading weights of CAT-Seg."""
        self.pair_embedding.load_state_dict(self.embedding.state_dict())
        self.pair_layers.load_state_dict(self.layers.state_dict())

    def volumes(
        self,
        image: Float[Tensor, "B C h w"],
        texts: PartTexts,
        guidance: Guidance,
        *,
        shared_logits: bool = True,
        costs: bool = False,
    ) -> PartVolumes:
        """All logits; those of parts and objects, and the costs, where they are asked for."""
        projected = self.project(guidance)
        num_shared, num_pairs = len(texts.shared), len(texts.pairs)
        shared = self.embed(lambda c: cost_volume(image, texts.shared[c]), num_classes=num_shared, batch=len(image))
        shared = self.aggregate(self.layers, shared, projected, self.text_guidance(texts.shared)[None])

        def pair_cost(classes: slice) -> Tensor:
            cells = F.normalize(self.pair_cells(shared, texts, classes), dim=-1)
            return torch.einsum("bthwc,tpc->btphw", cells, texts.pairs[classes])

        cost = self._with_gradients(pair_cost, slice(0, num_pairs)) if torch.is_grad_enabled() or costs else None
        read = pair_cost if cost is None else lambda c: cost[:, c]
        pairs = self.embed(read, num_classes=num_pairs, batch=len(image), embedding=self.pair_embedding)
        pairs = self.aggregate(self.pair_layers, pairs, projected, self.text_guidance(texts.pairs)[None])
        return PartVolumes(
            shared=self.decode(shared, projected) if shared_logits else None,
            pairs=self.decode(pairs, projected),
            shared_cost=cost_volume(image, texts.shared.mean(1, keepdim=True))[:, :, 0] if costs else None,
            pair_cost=cost.mean(2) if costs and cost is not None else None,
        )

    def pair_cells(
        self, shared: Float[Tensor, "B T h w D"], texts: PartTexts, classes: slice
    ) -> Float[Tensor, "B t h w C"]:
        """The maps of each pair's part and object beside each other, in the space of texts."""
        by_part, by_object = self.pair_projection.weight[..., 0, 0].chunk(2, dim=1)
        cells = F.linear(shared[:, texts.part_row[classes]], by_part)
        return cells + F.linear(shared[:, texts.object_row[classes]], by_object, self.pair_projection.bias)

    def _with_gradients(self, pair_cost: Callable[[slice], Tensor], classes: slice) -> Tensor:
        """The cost of all pairs; their cells, four times the volume, are made again in backward where it recomputes."""
        if not (self.recompute and torch.is_grad_enabled()):
            return pair_cost(classes)
        return checkpoint(pair_cost, classes, use_reentrant=False, preserve_rng_state=False)
