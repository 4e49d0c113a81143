"""CLIPSeg prompted with full object-part names ("dog head"): the baseline of PartCLIPSeg's tables.

Legend: B images, H W network size, K object-part classes, E prompts, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from partseg.backbones.clip_vit import ClipBackbone
from partseg.geometry import InputSpec, Region, Size
from partseg.prediction import DenseScores, PhraseScores, Prediction
from partseg.structures import Batch, Outputs
from partseg.system import Words
from partseg.systems.clipseg.decoder import Decoder, DecoderShape
from partseg.systems.clipseg.layers import VisualAdapter
from partseg.systems.clipseg.weights import LAYOUTS
from partseg.text.templates import TemplateLike, Templates
from partseg.vocabulary.phrases import Phrases
from partseg.weights.freeze import set_trainable

TEXT_EMBEDDINGS = ("backbone.clip.token_embedding.weight", "backbone.clip.positional_embedding")
"""What `train_text_embeddings` adds to `trainable`."""


@dataclass(frozen=True)
class ClipSegPrompts:
    """One embedding per object-part or phrase, and the learned background vector."""

    features: Float[Tensor, "E D"]
    background: Float[Tensor, "1 D"]
    are_phrases: bool = False

    def subset(self, kept: np.ndarray) -> ClipSegPrompts:
        """The prompts where `kept` is true."""
        return replace(self, features=self.features[torch.from_numpy(kept).to(self.features.device)])


class ClipSegBase(nn.Module):
    """Towers, adapter, decoder and background vector: what CLIPSeg is made of, and what is built on it.

    `trainable` are shell patterns of parameter names; the two `train_*` switches add the text embeddings and the
    background vector. `adapter_ratio=None` leaves the adapter out, which is CLIPSeg as published.
    """

    saves_memory = ("model.decoder_checkpoint=true",)

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        image_size: int,
        template: TemplateLike,
        adapter_ratio: float | None,
        decoder: DecoderShape | None,
        prompt_chunk: int,
        decoder_checkpoint: bool,
    ) -> None:
        super().__init__()
        self.input = InputSpec((image_size, image_size))
        self.templates = Templates(template)
        self.backbone = backbone
        self.adapter = None if adapter_ratio is None else VisualAdapter(backbone.image_dim, ratio=adapter_ratio)
        self.shape = decoder or DecoderShape()
        self.decoder = Decoder(
            self.shape,
            image_dim=backbone.image_dim,
            text_dim=backbone.text_dim,
            num_layers=len(backbone.feature_blocks),
            patch_size=backbone.patch_size,
            prompt_chunk=prompt_chunk,
            checkpointing=decoder_checkpoint,
        )
        self.background = nn.Parameter(torch.empty(1, backbone.text_dim))

    @torch.no_grad()
    def start_background(self) -> None:
        """Draw the background vector; after all modules, so that a seed gives the weights that it always gave."""
        self.background.copy_(torch.randn_like(self.background) * self.background.shape[1] ** -0.5)

    def set_trainable(self, patterns: Sequence[str], *, text_embeddings: bool, background: bool) -> None:
        """Freeze everything but the patterns and what the switches name; called once all modules are there."""
        chosen = [*patterns, *TEXT_EMBEDDINGS * text_embeddings, *("background",) * background]
        absent = () if self.adapter is not None else ("adapter",)
        set_trainable(self, chosen, unused=self.unused_parameters(), absent=absent)

    def unused_parameters(self) -> frozenset[str]:
        """Names of parameters that no output depends on: late image blocks, CLIP's image projection and scale."""
        return frozenset(f"backbone.{name}" for name in self.backbone.unused_parameters())

    def reduce_image(self, images: Tensor) -> list[Float[Tensor, "B 1 N w"]]:
        """Adapted, reduced features of each decoder layer; once per image, whatever the number of prompts."""
        features = self.backbone.encode_image(images)
        if self.adapter is not None:
            features = [self.adapter(x) for x in features]
        return self.decoder.reduce(features)

    def encode_phrases(self, phrases: Phrases) -> ClipSegPrompts:
        """Prompts of free phrases, in the model's template."""
        prompts = [self.templates.of_name(text) for text in phrases.texts]
        features = self.templates.encode(self.backbone.encode_prompts, prompts)
        return ClipSegPrompts(features, self.background, are_phrases=True)

    def prompt_masks(self, images: Tensor, prompts: Float[Tensor, "E D"]) -> Float[Tensor, "B E H W"]:
        """Logits of one mask per prompt."""
        grid = self.backbone.grid(images)
        tokens, _ = self.decoder.tokens(self.reduce_image(images), prompts, grid=grid)
        return self.decoder.masks(self.decoder.head, tokens, grid=grid)


class ClipSeg(ClipSegBase):
    """One prompt per object-part and a learned background vector; one mask per prompt.

    `background_logit` is a constant in the background's place: CLIPSeg as published has a threshold and no such vector.
    """

    weight_layouts = LAYOUTS
    passes = ("backbone.encode_tokens", "prompt_masks")

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        trainable: Sequence[str] = ("adapter.*", "decoder.*"),
        train_text_embeddings: bool = True,
        train_background: bool = True,
        image_size: int = 352,
        template: TemplateLike = "{}",
        adapter_ratio: float | None = 0.2,
        decoder: DecoderShape | None = None,
        prompt_chunk: int = 64,
        decoder_checkpoint: bool = False,
        background_logit: float | None = None,
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
        self.background_logit = background_logit
        self.start_background()
        self.set_trainable(trainable, text_embeddings=train_text_embeddings, background=train_background)

    def unused_parameters(self) -> frozenset[str]:
        """Those of all such networks, and the background vector where a constant stands in its place."""
        unused = super().unused_parameters()
        return unused if self.background_logit is None else unused | {"background"}

    def encode_text(self, words: Words) -> ClipSegPrompts:
        """A prompt per object-part, or per phrase."""
        if isinstance(words, Phrases):
            return self.encode_phrases(words)
        prompts = self.templates.prompts(words, "object_part")
        features = self.templates.encode(self.backbone.encode_prompts, prompts)
        return ClipSegPrompts(features, self.background)

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> Outputs:
        """Object-part logits [B, K + 1, H, W], background last; there is nothing else to read."""
        return Outputs(object_part=self.part_masks(batch.images, self.encode_text(batch.vocabulary)))

    def part_masks(self, images: Tensor, prompts: ClipSegPrompts) -> Float[Tensor, "B K+1 H W"]:
        """Logits of the object-parts, and of background."""
        if self.background_logit is None:
            return self.prompt_masks(images, torch.cat([prompts.features, prompts.background]))
        logits = self.prompt_masks(images, prompts.features)
        return torch.cat([logits, torch.full_like(logits[:, :1], self.background_logit)], dim=1)

    def predict(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        prompts: ClipSegPrompts,
        *,
        sizes: Sequence[Size],
        regions: Sequence[Region] | None = None,
        given: Sequence[Int[Tensor, "h w"] | None] | None = None,
    ) -> list[Prediction]:
        """Scores of all object-parts and background, or a logit map per phrase."""
        if prompts.are_phrases:
            return [PhraseScores(x, size) for x, size in zip(self.prompt_masks(images, prompts.features), sizes)]
        return [DenseScores(x, None, size) for x, size in zip(self.part_masks(images, prompts), sizes)]
