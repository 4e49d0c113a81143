"""PartCATSeg (Choi et al., CVPR 2025): object-parts from the maps of their object and their part, guided by DINOv2.

Legend: B images, H W pixels, K object-parts, P parts, O objects with parts, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from partseg.geometry import Region, Size
from partseg.prediction import DenseScores, Prediction
from partseg.structures import Batch, Outputs
from partseg.system import Words
from partseg.systems.cat_seg.inference import Inference, resized
from partseg.systems.cat_seg.network import BackgroundKind, CatSeg, CatSegPrompts
from partseg.systems.cat_seg.text import encode_prompts
from partseg.systems.part_cat_seg.aggregator import PartAggregator, PartTexts, PartVolumes
from partseg.systems.part_cat_seg.weights import LAYOUTS
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases
from partseg.vocabulary.tables import on_device
from partseg.weights.layouts import WeightLayout


@dataclass(frozen=True)
class PartInference(Inference):
    """`object_gate`: a pixel's object is predicted first, then its part; false is the best of all object-parts."""

    object_gate: bool = True


@dataclass(frozen=True)
class Composition:
    """Cosines that the cost volumes begin with, averaged over the prompts, background last."""

    objects: Float[Tensor, "B O+1 h w"]
    pairs: Float[Tensor, "B K+1 h w"]


@dataclass(frozen=True)
class PartCatSegOutputs(Outputs):
    """Dense outputs, and what the compositional loss compares."""

    composition: Composition | None = None


@dataclass(frozen=True)
class PartCatSegPrompts:
    """Normalised embeddings of every prompt of parts, objects and object-parts, background last in both lists."""

    texts: PartTexts
    vocabulary: Vocabulary

    def subset(self, kept: np.ndarray) -> PartCatSegPrompts:
        """Prompts of the object-parts where `kept` is true, and of their parts and objects."""
        before, words = self.vocabulary, self.vocabulary.subset(kept)
        rows = [before.parts.index(name) for name in words.parts]
        rows += [before.num_parts + before.objects.index(name) for name in words.objects]
        pairs = [*np.flatnonzero(kept).tolist(), len(before)]
        shared = self.texts.shared[[*rows, before.num_parts + before.num_objects]]
        return PartCatSegPrompts(part_texts(shared, self.texts.pairs[pairs], words), words)


def part_texts(shared: Tensor, pairs: Tensor, words: Vocabulary) -> PartTexts:
    """Embeddings with the places of each pair's part and object among parts, objects and background."""

    def rows() -> np.ndarray:
        last = words.num_parts + words.num_objects
        return np.stack([np.append(words.part_of, last), np.append(words.num_parts + words.object_of, last)])

    return PartTexts(shared, pairs, *on_device(words, "part_texts", device=shared.device, make=rows))


class PartCatSeg(CatSeg):
    """CAT-Seg whose object-part volume is made of the aggregated volumes of objects and parts."""

    aggregator: PartAggregator
    aggregator_class = PartAggregator
    passes = ("backbone.encode_tokens", "volumes")

    def _start_background(self, kind: BackgroundKind, *, seed: int) -> None:
        if kind == "none":
            raise ValueError("model.background=none: objects and object-parts need one; allowed are learned and drawn")
        super()._start_background(kind, seed=seed)

    @property
    def weight_layouts(self) -> tuple[WeightLayout, ...]:
        """The authors' checkpoints, and CAT-Seg's first version and CLIP alone as a start."""
        return LAYOUTS

    def encode_text(  # type: ignore[override]
        self, words: Words
    ) -> PartCatSegPrompts | CatSegPrompts:
        """All prompts of parts, objects and object-parts ("dog's head"), or of phrases, which are read as objects."""
        if isinstance(words, Phrases):
            return super().encode_text(words)
        part, obj, object_part = (
            encode_prompts(self.backbone, self.templates.prompts(words, level))
            for level in ("part", "object", "object_part")
        )
        shared, pairs = self._classes(torch.cat([part, obj])), self._classes(object_part)
        return PartCatSegPrompts(part_texts(shared, pairs, words), words)

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> PartCatSegOutputs:
        """Logits at the pictures' size, and of the rest what `reads` names."""
        prompts = self.encode_text(batch.vocabulary)
        assert isinstance(prompts, PartCatSegPrompts)
        wanted = bool(reads & {"object", "part"})
        found = self.volumes(batch.images / 255, prompts.texts, shared_logits=wanted, costs="composition" in reads)
        size, num_parts = (batch.images.shape[2], batch.images.shape[3]), batch.vocabulary.num_parts
        shared = None if found.shared is None else resized(found.shared, size)
        composition = None
        if found.shared_cost is not None and found.pair_cost is not None:
            composition = Composition(found.shared_cost[:, num_parts:], found.pair_cost)
        return PartCatSegOutputs(
            object_part=resized(found.pairs, size),
            object=None if shared is None else shared[:, num_parts:],
            part=None if shared is None else shared[:, :num_parts],
            composition=composition,
        )

    def volumes(
        self,
        images: Float[Tensor, "B 3 H W"],
        texts: PartTexts,
        *,
        shared_logits: bool = True,
        costs: bool = False,
    ) -> PartVolumes:
        """What the aggregator makes of images 0..1."""
        features, guidance = self.features(images)
        return self.aggregator.volumes(features.cells, texts, guidance, shared_logits=shared_logits, costs=costs)

    def logits(
        self, images: Float[Tensor, "B 3 H W"], classes: PartCatSegPrompts | Float[Tensor, "T prompts D"]
    ) -> Float[Tensor, "B C h w"]:
        """Object-parts and background, then objects and background where the gate reads them; or phrases."""
        if isinstance(classes, Tensor):
            return super().logits(images, classes)
        found = self.volumes(images, classes.texts, shared_logits=self.object_gate)
        if found.shared is None:
            return found.pairs
        return torch.cat([found.pairs, found.shared[:, classes.vocabulary.num_parts :]], dim=1)

    @property
    def object_gate(self) -> bool:
        """Whether objects are predicted beside object-parts."""
        return getattr(self.inference, "object_gate", True)

    def predict(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        prompts: PartCatSegPrompts | CatSegPrompts,
        *,
        sizes: Sequence[Size],
        regions: Sequence[Region] | None = None,
        given: Sequence[Int[Tensor, "h w"] | None] | None = None,
    ) -> list[Prediction]:
        """Scores of object-parts and objects with background each, or a logit map per phrase."""
        if isinstance(prompts, CatSegPrompts):
            return super().predict(images, prompts, sizes=sizes, regions=regions)
        found: list[Prediction] = []
        classes = len(prompts.vocabulary) + 1
        for scores, size in zip(self._scores(images / 255, prompts, regions), sizes):  # type: ignore[arg-type]
            found.append(DenseScores(scores[:classes], scores[classes:] if self.object_gate else None, size))
        return found
