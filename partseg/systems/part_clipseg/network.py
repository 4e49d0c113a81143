"""PartCLIPSeg: CLIPSeg's decoder run for parts and objects, combined per object-part (paper sections 3.2 and B.2).

Legend: B images, H W network size, K object-part classes, P parts, O objects, E = P + O + 1 prompts, D text width,
T tokens without CLS, w decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from partseg.backbones.clip_vit import ClipBackbone
from partseg.geometry import Region, Size
from partseg.prediction import DenseScores, PhraseScores, Prediction
from partseg.structures import Batch, Outputs
from partseg.system import Words
from partseg.systems.clipseg.decoder import DecoderAttention, DecoderShape
from partseg.systems.clipseg.layers import Film, MaskHead, over_prompts
from partseg.systems.clipseg.network import ClipSegBase, ClipSegPrompts
from partseg.systems.part_clipseg.attention_maps import MaskAttention, masked_attention
from partseg.systems.part_clipseg.weights import LAYOUTS
from partseg.text.templates import TemplateLike
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases
from partseg.vocabulary.tables import on_device

ATTENTION = "attention."
"""Beginning of the names under which loss terms read decoder layers: "attention.2"."""


@dataclass(frozen=True)
class PartClipSegOutputs(Outputs):
    """Dense outputs, and the queries and keys of decoder layers by layer; prompt order: parts, objects, background."""

    attention: dict[int, DecoderAttention] = field(default_factory=dict)


class PairIndex(NamedTuple):
    """Of which rows each object-part is made, background last.

    `part` and `object` are rows of the tokens by part and by object, with background as the last row of each;
    `part_text` and `object_text` the prompts (parts, objects, background) that are read as their texts.
    """

    part: Int[Tensor, " K+1"]
    object: Int[Tensor, " K+1"]
    part_text: Int[Tensor, " K+1"]
    object_text: Int[Tensor, " K+1"]


@dataclass(frozen=True)
class PartClipSegPrompts:
    """Embeddings of parts and objects, the background vector, and how object-parts are made of them."""

    part: Float[Tensor, "P D"]
    object: Float[Tensor, "O D"]
    background: Float[Tensor, "1 D"]
    pairs: PairIndex
    vocabulary: Vocabulary
    official: bool

    def all(self) -> Float[Tensor, "E D"]:
        """Parts, objects, background."""
        return torch.cat([self.part, self.object, self.background])

    def subset(self, kept: np.ndarray) -> PartClipSegPrompts:
        """Prompts of the object-parts where `kept` is true."""
        smaller = self.vocabulary.subset(kept)
        parts = [self.vocabulary.parts.index(name) for name in smaller.parts]
        objects = [self.vocabulary.objects.index(name) for name in smaller.objects]
        pairs = pair_index(smaller, official=self.official, device=self.part.device)
        return PartClipSegPrompts(
            self.part[parts], self.object[objects], self.background, pairs, smaller, self.official
        )


def pair_index(vocabulary: Vocabulary, *, official: bool, device: torch.device) -> PairIndex:
    """Which tokens and prompts make each object-part of a vocabulary."""

    def rows() -> np.ndarray:
        num_parts, num_objects = vocabulary.num_parts, vocabulary.num_objects
        text = official_text_rows(vocabulary) if official else range(num_parts, num_parts + num_objects)
        part, obj = np.append(vocabulary.part_of, num_parts), np.append(vocabulary.object_of, num_objects)
        background = num_parts + num_objects
        part_text, object_text = np.append(part[:-1], background), np.append(np.array(text)[obj[:-1]], background)
        return np.stack([part, obj, part_text, object_text])

    return PairIndex(*on_device(vocabulary, f"pair_index {official}", device=device, make=rows))


def official_text_rows(vocabulary: Vocabulary) -> list[int]:
    """Per object [O]: the prompt (parts, then objects) whose embedding the authors' code takes for the object's.

    Their prompts are the part names in alphabetical order, then the object names in alphabetical order; they gather
    with an object's position among the objects, without the offset of the parts before it. Mostly that is some part.
    """
    parts, objects = sorted(vocabulary.parts), sorted(vocabulary.objects)
    rows = [vocabulary.parts.index(name) for name in parts]
    rows += [vocabulary.num_parts + vocabulary.objects.index(name) for name in objects]
    return [rows[objects.index(name)] for name in vocabulary.objects]


class PairHead(nn.Module):
    """Object-part logits from part and object token maps (paper equations 3 and 4)."""

    def __init__(self, *, text_dim: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * width, width)
        self.text = nn.Linear(2 * text_dim, text_dim)
        self.film = Film(text_dim, width)
        self.head = MaskHead(width, patch_size=patch_size)

    def split_project(
        self, part: Float[Tensor, "B P T w"], obj: Float[Tensor, "B O T w"]
    ) -> tuple[Float[Tensor, "B P T w"], Float[Tensor, "B O T w"]]:
        """W [part | object] + b = W_p part + (W_o object + b): the two terms, once per part and once per object."""
        by_part, by_object = self.project.weight.chunk(2, dim=1)
        return F.linear(part, by_part), F.linear(obj, by_object, self.project.bias)

    def masks(self, tokens: Float[Tensor, "B E T w"], text: Float[Tensor, "E D"], *, grid: tuple[int, int]) -> Tensor:
        """Logits of projected pair tokens under their text."""
        return self.head.masks(self.film(tokens, text), grid)


class PartClipSeg(ClipSegBase):
    """Masks of parts, objects, background and object-parts.

    `official_object_text_index` reads the embedding that the authors' code reads in place of the object's
    (`official_text_rows`), for their checkpoints only. They leave the background vector at its random start.
    """

    weight_layouts = LAYOUTS
    passes = ("backbone.encode_tokens", "dense_pass")

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        trainable: Sequence[str] = ("adapter.*", "decoder.*", "pair.*"),
        train_text_embeddings: bool = True,
        train_background: bool = True,
        official_object_text_index: bool = False,
        image_size: int = 352,
        template: TemplateLike = "{}",
        adapter_ratio: float | None = 0.2,
        decoder: DecoderShape | None = None,
        prompt_chunk: int = 64,
        decoder_checkpoint: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            image_size=image_size,
            template=template,
            adapter_ratio=adapter_ratio,
            decoder=decoder,
            prompt_chunk=prompt_chunk,
            decoder_checkpoint=decoder_checkpoint,
        )
        self.official_object_text_index = official_object_text_index
        self.pair = PairHead(text_dim=backbone.text_dim, width=self.shape.width, patch_size=backbone.patch_size)
        self.start_pair_from_decoder()
        self.start_background()
        self.set_trainable(trainable, text_embeddings=train_text_embeddings, background=train_background)

    def start_pair_from_decoder(self) -> None:
        """Copy the decoder's FiLM and head into the pair's: its start, also after loading CLIPSeg weights."""
        self.pair.film.load_state_dict(self.decoder.film.state_dict())
        self.pair.head.load_state_dict(self.decoder.head.state_dict())

    def encode_text(self, words: Words) -> PartClipSegPrompts | ClipSegPrompts:
        """Prompts of parts and objects, or of phrases, which the decoder of parts and objects takes as they are."""
        if isinstance(words, Phrases):
            return self.encode_phrases(words)
        parts, objects = self.templates.prompts(words, "part"), self.templates.prompts(words, "object")
        encode = self.backbone.encode_prompts
        if len(parts[0]) == len(objects[0]):
            features = self.templates.encode(encode, [*parts, *objects])
        else:
            features = torch.cat([self.templates.encode(encode, each) for each in (parts, objects)])
        official = self.official_object_text_index
        pairs = pair_index(words, official=official, device=features.device)
        return PartClipSegPrompts(
            features[: len(parts)], features[len(parts) :], self.background, pairs, words, official
        )

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> PartClipSegOutputs:
        """Of logits [B, K + 1], [B, O + 1] (background last) and [B, P] and of attention layers, what `reads` names."""
        layers = tuple(sorted(int(name.removeprefix(ATTENTION)) for name in reads if name.startswith(ATTENTION)))
        prompts = self.encode_text(batch.vocabulary)
        assert isinstance(prompts, PartClipSegPrompts)
        return self.segment(batch.images, prompts, reads=reads, attention_layers=layers)

    def predict(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        prompts: PartClipSegPrompts | ClipSegPrompts,
        *,
        sizes: Sequence[Size],
        regions: Sequence[Region] | None = None,
        given: Sequence[Int[Tensor, "h w"] | None] | None = None,
    ) -> list[Prediction]:
        """Scores of object-parts and objects with background each, or a logit map per phrase."""
        if isinstance(prompts, ClipSegPrompts):
            return [PhraseScores(x, size) for x, size in zip(self.prompt_masks(images, prompts.features), sizes)]
        outputs = self.segment(images, prompts, reads=frozenset({"object_part", "object"}))
        assert outputs.object_part is not None and outputs.object is not None
        return [DenseScores(*each) for each in zip(outputs.object_part, outputs.object, sizes)]

    @torch.inference_mode()
    def attention(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        prompts: PartClipSegPrompts | ClipSegPrompts,
        labels: Int[Tensor, "B H W"],
        vocabulary: Vocabulary,
    ) -> list[dict[int, Float[Tensor, "rows columns"]]]:
        """Where the last decoder layer looks for each part, averaged over the part's cells (paper, eq. 6)."""
        if isinstance(prompts, ClipSegPrompts):
            raise ValueError("attention is shown for the parts of a vocabulary, not for phrases")
        layer = len(self.decoder.layers) - 1
        kept = self.segment(images, prompts, attention_layers=(layer,)).attention
        found = masked_attention(kept, labels, vocabulary=vocabulary, options=MaskAttention(layers=(layer,)))
        maps: list[dict[int, Tensor]] = [{} for _ in images]
        for image, label, heat in zip(found.image.tolist(), found.object_part.tolist(), found.maps):
            maps[image][label] = heat
        return maps

    def segment(
        self,
        images: Tensor,
        prompts: PartClipSegPrompts,
        *,
        reads: frozenset[str] = frozenset(),
        attention_layers: tuple[int, ...] = (),
    ) -> PartClipSegOutputs:
        """What `reads` names of the logits, and the attention layers asked for."""
        return self.dense_pass(
            images,
            prompts.all(),
            prompts.pairs,
            num_parts=len(prompts.part),
            reads=reads,
            attention_layers=attention_layers,
        )

    def dense_pass(
        self,
        images: Tensor,
        embeddings: Float[Tensor, "E D"],
        pairs: PairIndex,
        *,
        num_parts: int,
        reads: frozenset[str],
        attention_layers: tuple[int, ...],
    ) -> PartClipSegOutputs:
        """`segment` without names: what `train.compile` compiles."""
        grid = self.backbone.grid(images)
        tokens, attention = self.decoder.tokens(
            self.reduce_image(images), embeddings, grid=grid, attention_layers=attention_layers
        )
        first = 0 if "part" in reads else num_parts
        last = tokens.shape[1] if "object" in reads else num_parts
        logits = self.decoder.masks(self.decoder.head, tokens[:, first:last], grid=grid) if first < last else None
        return PartClipSegOutputs(
            object_part=self._pair_masks(tokens, embeddings, num_parts, pairs, grid=grid)
            if "object_part" in reads
            else None,
            object=None if logits is None or "object" not in reads else logits[:, num_parts - first :],
            part=None if logits is None or "part" not in reads else logits[:, :num_parts],
            attention=attention,
        )

    def _pair_masks(
        self,
        tokens: Float[Tensor, "B E T w"],
        prompts: Float[Tensor, "E D"],
        num_parts: int,
        index: PairIndex,
        *,
        grid: tuple[int, int],
    ) -> Float[Tensor, "B K+1 H W"]:
        # Background is pair number K: the background feature twice, the background vector twice.
        part, obj = self.pair.split_project(
            torch.cat([tokens[:, :num_parts], tokens[:, -1:]], dim=1), tokens[:, num_parts:]
        )
        text = self.pair.text(torch.cat([prompts[index.object_text], prompts[index.part_text]], dim=1))

        def run(pairs: slice) -> Tensor:
            return self.pair.masks(part[:, index.part[pairs]] + obj[:, index.object[pairs]], text[pairs], grid=grid)

        return over_prompts(
            run, len(text), chunk=self.decoder.chunk(tokens, masks=True), recompute=self.decoder.checkpointing
        )
