"""The cost volume and its aggregation: image features and class texts -> one logit map per class (paper, section 3).

Legend: B images, T classes, P prompts per class, C feature width, h w cells, D cost width.
Volumes are [B, T, h, w, D]: both attentions and, as channels-last maps, the convolutions read them without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from partseg.systems.cat_seg.classes import ClassLayer
from partseg.systems.cat_seg.decoder import Decoder
from partseg.systems.cat_seg.spatial import SpatialLayer


@dataclass(frozen=True)
class Guidance:
    """What the picture tells beside the cost: features on the cells, and finer ones for the decoder, coarse to fine."""

    appearance: Float[Tensor, "B C h w"]
    decoder: tuple[Tensor, ...]


@dataclass(frozen=True)
class AggregatorShape:
    """Sizes of the aggregator; the defaults are the published ones.

    `prompts` are the texts per class. `pooling` is that of the class attention, 1 where the authors evaluate objects.
    `padding` is the number of classes that learned tokens fill up to, the class attention's limit (CVPR 2024: 256).
    """

    hidden: int = 128
    heads: int = 4
    layers: int = 2
    window: int = 12
    pooling: int = 2
    prompts: int = 80
    padding: int | None = None
    text: int = 128
    appearance: int = 128
    decoder: tuple[int, ...] = (64, 32)
    decoder_guidance: tuple[int, ...] = (32, 16)


def cost_volume(image: Float[Tensor, "B C h w"], text: Float[Tensor, "T P C"]) -> Float[Tensor, "B T P h w"]:
    """Cosine of every cell with every prompt of every class (paper, equation 1); `text` is normalised already."""
    cells = F.normalize(image, dim=1).flatten(2)
    return (text.flatten(0, 1) @ cells).view(len(image), *text.shape[:2], *image.shape[2:])


def class_slices(count: int, chunk: int) -> list[slice]:
    """The classes, at most `chunk` at a time."""
    return [slice(i, min(i + chunk, count)) for i in range(0, count, chunk)]


class CostEmbedding(nn.Module):
    """A 7 x 7 convolution over each class's cosines, prompts as channels."""

    def __init__(self, prompts: int, hidden: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(prompts, hidden, 7, padding=3)

    def forward(self, cost: Float[Tensor, "B T P h w"]) -> Float[Tensor, "B T h w D"]:
        """The cost of each class as a map of `hidden` channels."""
        return self.conv(cost.flatten(0, 1)).permute(0, 2, 3, 1).contiguous().unflatten(0, cost.shape[:2])


class AggregationLayer(nn.Module):
    """Spatial aggregation, then class aggregation."""

    def __init__(self, spatial: SpatialLayer, classes: ClassLayer) -> None:
        super().__init__()
        self.spatial, self.classes = spatial, classes

    def forward(
        self, x: Float[Tensor, "B T h w D"], appearance: Float[Tensor, "B h w G"], text: Float[Tensor, " #B T G"]
    ) -> Float[Tensor, "B T h w D"]:
        """The volume after the layer."""
        return self.classes(self.spatial(x, appearance), text)

    def in_place(self, x: Tensor, appearance: Tensor, text: Tensor, *, chunks: Sequence[slice]) -> None:
        """`forward` without gradients, written into `x`, so many classes at a time."""
        for c in chunks:
            x[:, c] = self.spatial(x[:, c], appearance)
        self.classes(x, text, chunks=chunks)


def aggregation_layers(shape: AggregatorShape, class_layer: type[ClassLayer] = ClassLayer) -> nn.ModuleList:
    """The layers of a shape."""
    return nn.ModuleList(
        AggregationLayer(
            SpatialLayer(shape.hidden, shape.appearance, heads=shape.heads, window=shape.window),
            class_layer(shape.hidden, shape.text, heads=shape.heads, pooling=shape.pooling, padding=shape.padding),
        )
        for _ in range(shape.layers)
    )


@dataclass(frozen=True)
class Projected:
    """Guidance in the widths that layers and decoder read."""

    appearance: Float[Tensor, "B h w G"]
    decoder: tuple[Tensor, ...]


class Aggregator(nn.Module):
    """Embeds a cost volume, aggregates it over cells and classes, and decodes it.

    Without gradients `class_chunk` (image, class) maps run at once and the volume changes in place; results do not
    depend on it. `recompute` keeps only the volumes between layers for backward.
    """

    class_layer: type[ClassLayer] = ClassLayer

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
        super().__init__()
        if class_chunk < 1:
            raise ValueError(f"class_chunk must be at least 1, got {class_chunk}")
        self.shape = shape
        self.class_chunk, self.recompute = class_chunk, recompute
        self.embedding = CostEmbedding(shape.prompts, shape.hidden)
        self.appearance = nn.Conv2d(appearance_dim, shape.appearance, 3, padding=1)
        self.text = nn.Linear(text_dim, shape.text)
        self.decoder_guidance = nn.ModuleList(
            nn.Conv2d(theirs, ours, 3, padding=1)
            for theirs, ours in zip(decoder_guidance_dims, shape.decoder_guidance, strict=True)
        )
        self.layers = aggregation_layers(shape, self.class_layer)
        self.decoder = Decoder(shape.hidden, shape.decoder, shape.decoder_guidance)

    def forward(
        self, image: Float[Tensor, "B C h w"], text: Float[Tensor, "T P C"], guidance: Guidance
    ) -> Float[Tensor, "B T 4*h 4*w"]:
        """Logits of every class."""
        projected = self.project(guidance)
        volume = self.embed(lambda classes: cost_volume(image, text[classes]), num_classes=len(text), batch=len(image))
        volume = self.aggregate(self.layers, volume, projected, self.text_guidance(text)[None])
        return self.decode(volume, projected)

    def project(self, guidance: Guidance) -> Projected:
        """The picture's features as the layers and the decoder read them; once per image."""
        appearance = F.relu(self.appearance(guidance.appearance)).permute(0, 2, 3, 1)
        decoder = (F.relu(conv(each)) for conv, each in zip(self.decoder_guidance, guidance.decoder, strict=True))
        return Projected(appearance, tuple(decoder))

    def text_guidance(self, text: Float[Tensor, "T P C"]) -> Float[Tensor, "T G"]:
        """The mean prompt of each class, normalised and projected."""
        return F.relu(self.text(F.normalize(text.mean(1), dim=-1)))

    def embed(
        self,
        cost: Callable[[slice], Float[Tensor, "B t P h w"]],
        *,
        num_classes: int,
        batch: int,
        embedding: CostEmbedding | None = None,
    ) -> Float[Tensor, "B T h w D"]:
        """The embedded volume; without gradients the cosines of `cost(classes)` exist for some classes at a time."""
        embedding = embedding or self.embedding
        chunks = self.chunks(num_classes, batch)
        if not chunks:
            return embedding(cost(slice(0, num_classes)))
        first = embedding(cost(chunks[0]))
        volume = first.new_empty((batch, num_classes, *first.shape[2:]))
        volume[:, chunks[0]] = first
        for c in chunks[1:]:
            volume[:, c] = embedding(cost(c))
        return volume

    def aggregate(
        self, layers: nn.ModuleList, volume: Tensor, projected: Projected, text: Float[Tensor, " #B T G"]
    ) -> Float[Tensor, "B T h w D"]:
        """The volume after the layers; without gradients it is changed in place."""
        chunks = self.chunks(volume.shape[1], len(volume))
        for layer in layers:
            if chunks:
                layer.in_place(volume, projected.appearance, text, chunks=chunks)  # type: ignore[operator]
            elif self.recompute and torch.is_grad_enabled():
                inputs = (volume, projected.appearance, text)
                volume = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                volume = layer(volume, projected.appearance, text)
        return volume

    def decode(self, volume: Float[Tensor, "B T h w D"], projected: Projected) -> Float[Tensor, "B T 4*h 4*w"]:
        """Logits of every class, some classes at a time without gradients or where backward recomputes them."""

        def run(classes: slice) -> Tensor:
            return self.decoder(volume[:, classes], projected.decoder)

        count = volume.shape[1]
        if self.recompute and torch.is_grad_enabled():
            parts = class_slices(count, max(1, self.class_chunk // len(volume)))
            return torch.cat([checkpoint(run, c, use_reentrant=False, preserve_rng_state=False) for c in parts], 1)
        chunks = self.chunks(count, len(volume))
        first = run(chunks[0] if chunks else slice(0, count))
        if len(chunks) < 2:
            return first
        logits = first.new_empty((len(volume), count, *first.shape[2:]))
        for i, c in enumerate(chunks):
            logits[:, c] = run(c) if i else first
        return logits

    def chunks(self, num_classes: int, batch: int) -> list[slice]:
        """Classes to run at once; none where all run together, with gradients."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return []
        return class_slices(num_classes, max(1, self.class_chunk // batch))
