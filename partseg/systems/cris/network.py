"""CRIS: CLIP's ResNet, an FPN neck that multiplies the phrase in, a decoder over its words, and a kernel made from it.

Legend: B images, E phrases, N (image, phrase) pairs, L tokens of the longest phrase, h w cells of a logit map (1/4).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from partseg.geometry import InputSpec, Region, Size
from partseg.prediction import DenseScores, PhraseScores, Prediction
from partseg.structures import Batch
from partseg.system import Words
from partseg.systems.cris.backbone import ClipResNet
from partseg.systems.cris.decoder import Decoder, Projector
from partseg.systems.cris.masks import official_masks
from partseg.systems.cris.neck import Neck
from partseg.systems.cris.weights import LAYOUTS
from partseg.text.templates import TemplateLike, Templates
from partseg.utils import distributed
from partseg.vocabulary.phrases import Phrases
from partseg.weights.freeze import set_trainable


@dataclass(frozen=True)
class CrisShape:
    """Sizes of neck and decoder; the defaults are the authors'. The decoder is as wide as the text tower."""

    branches: tuple[int, int, int] = (256, 512, 1024)
    layers: int = 3
    heads: int = 8
    hidden: int = 2048
    dropout: float = 0.1


@dataclass(frozen=True)
class CrisPrompts:
    """Phrases, or the phrase of each class of a vocabulary: features per token, which are padding, and as a whole."""

    words: Float[Tensor, "E L W"]
    padding: Bool[Tensor, "E L"]
    state: Float[Tensor, "E D"]
    are_phrases: bool = False

    def subset(self, kept: np.ndarray) -> CrisPrompts:
        """The phrases where `kept` is true."""
        rows = torch.from_numpy(kept).to(self.state.device)
        return replace(self, words=self.words[rows], padding=self.padding[rows], state=self.state[rows])


@dataclass(frozen=True)
class CrisOutputs:
    """Logits of each image's phrase, at a quarter of the image's size."""

    logits: Float[Tensor, "B h w"]


class Cris(nn.Module):
    """One mask per phrase; a class of a vocabulary is asked for by `template`.

    A pixel belongs to a phrase where its probability exceeds `threshold`, which is also what a class must exceed to win
    over background. `official_resize` brings probabilities to the photo's size as the authors do. At most
    `phrase_chunk` pairs of image and phrase run at once in prediction. `trainable` are shell patterns.
    """

    weight_layouts = LAYOUTS
    passes = ("backbone.encode_tokens", "pair_logits")

    def __init__(
        self,
        backbone: ClipResNet,
        *,
        trainable: Sequence[str] = ("*",),
        image_size: int = 416,
        template: TemplateLike = "{}",
        shape: CrisShape | None = None,
        threshold: float = 0.35,
        official_resize: bool = False,
        phrase_chunk: int = 16,
    ) -> None:
        super().__init__()
        if image_size % 32:
            raise ValueError(f"image_size={image_size} must be a multiple of 32, the stride of the image tower")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold} is a probability between 0 and 1")
        if phrase_chunk < 1:
            raise ValueError(f"phrase_chunk must be at least 1, got {phrase_chunk}")
        self.input = InputSpec((image_size, image_size), "letterbox", fill=backbone.fill)
        self.templates = Templates(template)
        self.threshold = threshold
        self.official_resize = official_resize
        self.phrase_chunk = phrase_chunk
        self.backbone = backbone
        shape = shape or CrisShape()
        width = backbone.word_dim
        if shape.branches[1] != width:
            raise ValueError(f"shape.branches={shape.branches}: the middle one must be the text tower's width, {width}")
        self.neck = Neck(backbone.image_dims, backbone.state_dim, shape.branches)
        self.decoder = Decoder(
            width, layers=shape.layers, heads=shape.heads, hidden=shape.hidden, dropout=shape.dropout
        )
        self.projector = Projector(width, backbone.state_dim)
        set_trainable(self, trainable, unused=("backbone.clip.logit_scale",))

    def encode_text(self, words: Words) -> CrisPrompts:
        """A phrase per object-part of a vocabulary, or the phrases as they are."""
        if isinstance(words, Phrases):
            return CrisPrompts(*self.backbone.encode_phrases(words.texts), are_phrases=True)
        prompts = self.templates.prompts(words, "object_part")
        if len(prompts[0]) > 1:
            raise ValueError("this system asks for a class by one phrase; model.template must be a single text")
        return CrisPrompts(*self.backbone.encode_phrases([text for (text,) in prompts]))

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> CrisOutputs:
        """Logits of each image's own phrase."""
        if batch.phrases is None:
            raise ValueError("this system is trained on phrases: set augmentation.about=phrase")
        if self.training:
            self._check_statistics(len(batch))
        words, padding, state = self.backbone.encode_phrases(batch.phrases)
        devices = [batch.images.device] if batch.images.is_cuda else []
        # dropout is a function of the batch, not of what ran before: a resumed run goes on as if it had not stopped
        with torch.random.fork_rng(devices, enabled=self.training):
            if self.training:
                torch.manual_seed(zlib.crc32("\n".join((*batch.names, *batch.phrases)).encode()))
            return CrisOutputs(self.pair_logits(batch.images, CrisPrompts(words, padding, state)))

    def _check_statistics(self, count: int) -> None:
        synced = distributed.world_size() > 1 and any(isinstance(m, nn.SyncBatchNorm) for m in self.modules())
        if count < 2 and not synced:
            raise ValueError(
                "a micro-batch of one image has no statistics for batch normalisation: train.batch_size must be at "
                "least twice train.accumulation times the number of processes, or train.sync_batch_norm=true on several"
            )

    def pair_logits(self, images: Tensor, prompts: CrisPrompts) -> Float[Tensor, "B h w"]:
        """Logits of as many images as prompts, each image with its own."""
        return self._logits(self.neck.branches(*self.backbone.encode_image(images)), prompts)

    def _logits(self, branches: tuple[Tensor, Tensor, Tensor], prompts: CrisPrompts) -> Float[Tensor, "N h w"]:
        """Logits of pairs: branches and prompts are of the same length."""
        fused = self.neck(branches, prompts.state)
        return self.projector(self.decoder(fused, prompts.words, prompts.padding), prompts.state)

    def prompt_logits(self, images: Tensor, prompts: CrisPrompts) -> Float[Tensor, "B E h w"]:
        """Logits of every prompt on every image; each image is encoded once."""
        branches = self.neck.branches(*self.backbone.encode_image(images))
        count, size = len(images), max(1, self.phrase_chunk // len(images))
        found = []
        for start in range(0, len(prompts.state), size):
            some = slice(start, start + size)
            pairs = CrisPrompts(
                words=prompts.words[some].repeat(count, 1, 1),
                padding=prompts.padding[some].repeat(count, 1),
                state=prompts.state[some].repeat(count, 1),
            )
            b3, b4, b5 = (branch.repeat_interleave(len(pairs.state) // count, dim=0) for branch in branches)
            found.append(self._logits((b3, b4, b5), pairs).unflatten(0, (count, -1)))
        return torch.cat(found, dim=1)

    def predict(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        prompts: CrisPrompts,
        *,
        sizes: Sequence[Size],
        regions: Sequence[Region] | None = None,
        given: Sequence[Int[Tensor, "h w"] | None] | None = None,
    ) -> list[Prediction]:
        """A logit map per phrase, or scores of all object-parts with a constant background."""
        logits = self.prompt_logits(images, prompts)
        floor = math.log(self.threshold / (1 - self.threshold))
        places: Sequence[Region | None] = regions or [None] * len(images)
        if self.official_resize and prompts.are_phrases:
            found = [official_masks(each, size, self.input.size).logit(1e-6) for each, size in zip(logits, sizes)]
            return [PhraseScores(x, size, threshold=floor) for x, size in zip(found, sizes)]
        full = F.interpolate(logits.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)
        if prompts.are_phrases:
            return [PhraseScores(x, size, place, threshold=floor) for x, size, place in zip(full, sizes, places)]
        full = torch.cat([full, torch.full_like(full[:, :1], floor)], dim=1)
        return [DenseScores(x, None, size, place) for x, size, place in zip(full, sizes, places)]
