"""CAT-Seg over object-parts: v1 (Cho et al., 2023; OV-PARTS' baseline) and the CVPR 2024 network, by options.

Legend: B images, H W pixels, T classes with background, K object-part classes, P prompts per class, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from partseg.geometry import Region, Size
from partseg.prediction import DenseScores, PhraseScores, Prediction
from partseg.structures import Batch, Outputs
from partseg.system import Words
from partseg.systems.cat_seg.aggregator import Aggregator, AggregatorShape, Guidance, class_slices, cost_volume
from partseg.systems.cat_seg.dense_clip import DenseClip, DenseFeatures
from partseg.systems.cat_seg.guidance import ClipGuidance, ConvGuidance, FromClip
from partseg.systems.cat_seg.inference import Inference, resized, squashed, windowed
from partseg.systems.cat_seg.text import encode_prompts, part_templates
from partseg.systems.cat_seg.vit_guidance import VitGuidance
from partseg.systems.cat_seg.weights import layouts
from partseg.vocabulary.phrases import Phrases
from partseg.weights.freeze import set_trainable
from partseg.weights.layouts import WeightLayout

ABSENT = -100.0
"""The logit of what is not scored: classes beyond the best ones, and background where the network has none."""

BackgroundKind = Literal["learned", "drawn", "none"]


@dataclass(frozen=True)
class CatSegPrompts:
    """Normalised embeddings of every prompt of every object-part or phrase; background last where there is one.

    It is appended here once: 1,000 classes have 160 MB of embeddings, which no picture should copy.
    """

    text: Float[Tensor, "T P D"]
    num_classes: int
    are_phrases: bool = False

    def subset(self, kept: np.ndarray) -> CatSegPrompts:
        """The prompts where `kept` is true, and background."""
        rows = [*np.flatnonzero(kept).tolist(), *range(self.num_classes, len(self.text))]
        return replace(self, text=self.text[rows], num_classes=int(kept.sum()))


class CatSeg(nn.Module):
    """Cosines of dense CLIP features with class texts, aggregated over cells and classes, decoded with guidance.

    `background` is a class of its own: a `learned` vector; one `drawn` with `background_seed`, which is neither trained
    nor saved (the authors' v1); or `none` (CVPR 2024), which predicts a class everywhere. `larger_vocabulary` says what
    happens to more classes than the class attention has room for: `refuse`, or score the `best` by cosine alone.
    """

    saves_memory = ("model.recompute=true",)
    passes: tuple[str, ...] = ("backbone.encode_tokens", "logits")
    aggregator_class: type[Aggregator] = Aggregator

    def __init__(
        self,
        backbone: DenseClip,
        *,
        guidance: ConvGuidance | VitGuidance | FromClip,
        aggregator: AggregatorShape,
        trainable: Sequence[str],
        image_size: int = 384,
        template: str = "imagenet",
        background: BackgroundKind = "learned",
        background_seed: int = 12345678,
        larger_vocabulary: Literal["refuse", "best"] = "refuse",
        inference: Inference | None = None,
        class_chunk: int = 32,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if larger_vocabulary not in ("refuse", "best"):
            raise ValueError(f"larger_vocabulary={larger_vocabulary!r} is not 'refuse' or 'best'")
        self.backbone, self.image_size, self.larger_vocabulary = backbone, image_size, larger_vocabulary
        self.inference = inference or Inference()
        self.input = self.inference.input(image_size)
        self.templates, prompts = part_templates(template)
        self.grid = _grid(image_size, backbone.patch_size, aggregator, prompts=prompts)
        dims = {"cell_dim": backbone.text_dim, "block_dim": backbone.image_dim}
        self.guidance = ClipGuidance(guidance, **dims) if isinstance(guidance, FromClip) else guidance
        if isinstance(guidance, FromClip) != (len(backbone.guidance_blocks) == 2):
            raise ValueError(
                f"model.backbone.guidance_blocks={list(backbone.guidance_blocks)}: guidance from CLIP needs two, "
                "a network beside it none"
            )
        self.aggregator = self.aggregator_class(
            aggregator,
            text_dim=backbone.text_dim,
            appearance_dim=self.guidance.appearance_dim,
            decoder_guidance_dims=self.guidance.decoder_dims,
            class_chunk=class_chunk,
            recompute=recompute,
        )
        self._start_background(background, seed=background_seed)
        absent = () if background == "learned" else ("background",)
        set_trainable(self, trainable, unused=self.unused_parameters(), absent=absent)

    def _start_background(self, kind: BackgroundKind, *, seed: int) -> None:
        if kind not in get_args(BackgroundKind):
            raise ValueError(f"background={kind!r} is not one of {get_args(BackgroundKind)}")
        width = self.backbone.text_dim
        generator = torch.Generator().manual_seed(seed) if kind == "drawn" else None
        # drawn on the CPU, so that it is the same vector wherever the network is
        vector = torch.randn((1, width), generator=generator, device="cpu" if generator else None) * width**-0.5
        if kind == "drawn":
            self.register_buffer("background", vector, persistent=False)
        else:
            self.background = nn.Parameter(vector) if kind == "learned" else None

    @property
    def weight_layouts(self) -> tuple[WeightLayout, ...]:
        """Public checkpoints of this variant, and CLIP alone; those of the other variant are refused by name."""
        own_guidance = not isinstance(self.guidance, VitGuidance)
        return layouts(v1=not isinstance(self.guidance, ClipGuidance), own_guidance=own_guidance)

    def unused_parameters(self) -> frozenset[str]:
        """Names of parameters that no output depends on."""
        return frozenset(f"backbone.{name}" for name in self.backbone.unused_parameters())

    # ---- text --------------------------------------------------------------------------------------------------------
    def encode_text(self, words: Words) -> CatSegPrompts:
        """All prompts of every object-part ("dog's head") or phrase."""
        if isinstance(words, Phrases):
            prompts = [self.templates.of_name(text, "object") for text in words.texts]
        else:
            prompts = self.templates.prompts(words, "object_part")
        room, classes = self.aggregator.shape.padding, len(prompts) + (self.background is not None)
        if room is not None and classes > room and self.larger_vocabulary == "refuse":
            raise ValueError(
                f"{classes} classes, background included, but the class attention has room for {room}; give a smaller "
                f"vocabulary, or model.larger_vocabulary=best to score the {room} best of each picture only"
            )
        text = self._classes(encode_prompts(self.backbone, prompts))
        return CatSegPrompts(text, len(prompts), isinstance(words, Phrases))

    def _classes(self, text: Float[Tensor, "K P D"]) -> Float[Tensor, "T P D"]:
        """The texts and, last, background: one vector in place of every prompt."""
        if self.background is None:
            return text
        background = F.normalize(self.background, dim=-1).expand(1, text.shape[1], -1)
        return torch.cat([text, background.to(text.dtype)])

    # ---- pictures ----------------------------------------------------------------------------------------------------
    def logits(self, images: Float[Tensor, "B 3 H W"], classes: Float[Tensor, "T P D"]) -> Float[Tensor, "B T h w"]:
        """Logits of the classes, background among them; images are 0..1, of any size."""
        features, guidance = self.features(images)
        room = self.aggregator.shape.padding
        if room is None or len(classes) <= room:
            return self.aggregator(features.cells, classes, guidance)
        found = []
        for i, best in enumerate(self._best(features.cells, classes, room)):
            own = Guidance(guidance.appearance[i : i + 1], tuple(each[i : i + 1] for each in guidance.decoder))
            scored = self.aggregator(features.cells[i : i + 1], classes[best], own)
            full = scored.new_full((1, len(classes), *scored.shape[2:]), ABSENT)
            found.append(full.index_copy(1, best, scored))
        return torch.cat(found)

    def features(self, images: Float[Tensor, "B 3 H W"]) -> tuple[DenseFeatures, Guidance]:
        """Cells and guidance of images 0..1."""
        pad_to = self.inference.pad_to
        view = squashed(images, self.image_size, pad_to=pad_to, fill=self.backbone.image_mean)
        features = self.backbone.encode_cells(view)
        if isinstance(self.guidance, ClipGuidance):
            return features, self.guidance(features)
        size = self.guidance.input_size(self.grid)
        view = squashed(images, size, pad_to=pad_to, fill=self.guidance.image_mean)
        return features, self.guidance(view, self.grid)

    def _best(self, cells: Tensor, classes: Float[Tensor, "T P D"], room: int) -> Int[Tensor, "B room"]:
        """The classes with the highest cosine anywhere in each picture, in order; background is among them."""
        chunks = class_slices(len(classes), self.aggregator.class_chunk)
        peaks = torch.cat([cost_volume(cells, classes[c]).flatten(2).amax(2) for c in chunks], dim=1)
        if self.background is not None:
            peaks[:, -1] = torch.inf
        return peaks.topk(room, dim=1).indices.sort(dim=1).values

    # ---- the system --------------------------------------------------------------------------------------------------
    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> Outputs:
        """Object-part logits [B, K + 1] at the pictures' size, background last; nothing else can be read."""
        logits = self.logits(_unit(batch.images), self.encode_text(batch.vocabulary).text)
        logits = resized(logits, (batch.images.shape[2], batch.images.shape[3]))
        return Outputs(object_part=self._with_background(logits, ABSENT))

    def predict(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        prompts: CatSegPrompts,
        *,
        sizes: Sequence[Size],
        regions: Sequence[Region] | None = None,
        given: Sequence[Int[Tensor, "h w"] | None] | None = None,
    ) -> list[Prediction]:
        """Scores of all object-parts and background, or a logit map per phrase."""
        scores = self._scores(_unit(images), prompts.text, regions)
        if prompts.are_phrases:
            threshold = 0.5 if self.inference.probabilities else 0.0
            return [PhraseScores(x[: prompts.num_classes], size, None, threshold) for x, size in zip(scores, sizes)]
        absent = 0.0 if self.inference.probabilities else ABSENT
        return [DenseScores(self._with_background(x[None], absent)[0], None, size) for x, size in zip(scores, sizes)]

    def _scores(
        self, images: Float[Tensor, "B 3 H W"], text: Tensor, regions: Sequence[Region] | None
    ) -> list[Float[Tensor, "T h w"]]:
        """Scores of the classes on each photo."""
        options, whole = self.inference, (0, 0, *images.shape[2:])
        photos = [images]
        if regions is not None and any(tuple(region) != whole for region in regions):
            photos = [_cut(image[None], region) for image, region in zip(images, regions)]
        elif options.windows:
            photos = list(images.split(1))
        scores: list[Tensor] = []
        for photo in photos:
            if options.windows:
                found = windowed(photo, lambda view: self.logits(view, text), options)
                scores += found if options.probabilities else torch.logit(found, eps=1e-6)
                continue
            found = self.logits(photo, text)
            if options.pad_to > 1:
                # the authors cut the padding off with the photo's size in pixels, of which there are more than logits
                found = found[..., : photo.shape[2], : photo.shape[3]]
            scores += found.sigmoid() if options.probabilities else found
        return scores

    def _with_background(self, logits: Float[Tensor, "B T h w"], absent: float) -> Float[Tensor, "B K+1 h w"]:
        """The logits with a last channel for background, `absent` everywhere where the network has none."""
        return F.pad(logits, (0, 0, 0, 0, 0, 1), value=absent) if self.background is None else logits


def _cut(image: Tensor, region: Region) -> Tensor:
    top, left, height, width = region
    return image[..., top : top + height, left : left + width]


def _unit(images: Tensor) -> Tensor:
    """Images 0..1."""
    return images / 255 if images.dtype == torch.uint8 else images


def _grid(image_size: int, patch: int, shape: AggregatorShape, *, prompts: int) -> int:
    """Cells along a side; ValueError where patches, windows or pooling do not fit."""
    grid = image_size // patch
    if image_size % patch or grid < shape.window or grid % shape.window or grid % shape.pooling:
        raise ValueError(
            f"model.image_size={image_size} has {image_size / patch:g} cells of {patch} pixels along a side; they must "
            f"be a multiple of aggregator.window={shape.window} and of aggregator.pooling={shape.pooling}"
        )
    if prompts != shape.prompts:
        raise ValueError(f"model.template has {prompts} texts per class, model.aggregator.prompts={shape.prompts}")
    return grid
