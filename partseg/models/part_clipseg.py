"""PartCLIPSeg: CLIPSeg's decoder run for parts and objects, combined per object-part (partclipseg.md sections 1 to 3).

Legend: B images, H W network size, K object-part classes, P parts, O objects, E = P + O + 1 prompts, D text width,
T tokens without CLS, w decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from partseg.models.backbone import ClipBackbone
from partseg.models.clipseg import TEXT_EMBEDDINGS, reduce_image
from partseg.models.decoder import Decoder, DecoderShape
from partseg.models.finetune import set_trainable
from partseg.models.layers import Film, MaskHead, VisualAdapter, over_prompts
from partseg.structures import Outputs, TextFeatures
from partseg.text.encoder import encode_prompts
from partseg.text.templates import resolve_template
from partseg.vocabulary import Vocabulary


def official_text_rows(vocabulary: Vocabulary) -> list[int]:
    """Per object [O]: the prompt (parts, then objects) whose embedding the authors' code takes for the object's.

    Their prompts are the part names in alphabetical order, then the object names in alphabetical order; they gather
    with an object's position among the objects, without the offset of the parts before it. Mostly that is some part.
    """
    parts, objects = sorted(vocabulary.parts), sorted(vocabulary.objects)
    rows = [vocabulary.parts.index(name) for name in parts]
    rows += [vocabulary.num_parts + vocabulary.objects.index(name) for name in objects]
    return [rows[objects.index(name)] for name in vocabulary.objects]


class PairIndex(NamedTuple):
    """Per object-part: its object, its part, and the prompt (parts, then objects) that is read as the object's text."""

    object_of: Int[Tensor, " K"]
    part_of: Int[Tensor, " K"]
    text_row: Int[Tensor, " K"]


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


class PartClipSeg(nn.Module):
    """Masks of parts, objects, background and object-parts.

    `trainable` are shell patterns of parameter names; the two `train_*` switches add the text embeddings and the
    background vector (the authors leave the latter at its random start). `official_object_text_index` reads the
    embedding that the authors' code reads in place of the object's (`official_text_rows`), for their checkpoints only.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        trainable: Sequence[str] = ("adapter.*", "decoder.*", "pair.*"),
        train_text_embeddings: bool = True,
        train_background: bool = True,
        official_object_text_index: bool = False,
        image_size: int = 352,
        template: str = "{}",
        adapter_ratio: float | None = 0.2,
        decoder: DecoderShape | None = None,
        prompt_chunk: int = 64,
        decoder_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size = image_size, backbone.patch_size
        self.template = resolve_template(template)
        self.official_object_text_index = official_object_text_index
        self.backbone = backbone
        self.adapter = None if adapter_ratio is None else VisualAdapter(backbone.image_dim, ratio=adapter_ratio)
        shape = decoder or DecoderShape()
        self.decoder = Decoder(
            shape,
            image_dim=backbone.image_dim,
            text_dim=backbone.text_dim,
            num_layers=len(backbone.feature_blocks),
            patch_size=backbone.patch_size,
            prompt_chunk=prompt_chunk,
            checkpointing=decoder_checkpoint,
        )
        self.pair = PairHead(text_dim=backbone.text_dim, width=shape.width, patch_size=backbone.patch_size)
        self.start_pair_from_decoder()
        self.background = nn.Parameter(torch.randn(1, backbone.text_dim) * backbone.text_dim**-0.5)
        patterns = [*trainable, *TEXT_EMBEDDINGS * train_text_embeddings, *("background",) * train_background]
        set_trainable(self, patterns, unused=self.unused_parameters(), absent=("adapter",) * (adapter_ratio is None))

    def unused_parameters(self) -> frozenset[str]:
        """Names of parameters that no output depends on: late image blocks, CLIP's image projection and scale."""
        return frozenset(f"backbone.{name}" for name in self.backbone.unused_parameters())

    def start_pair_from_decoder(self) -> None:
        """Copy the decoder's FiLM and head into the pair's: its start, also after loading CLIPSeg weights."""
        self.pair.film.load_state_dict(self.decoder.film.state_dict())
        self.pair.head.load_state_dict(self.decoder.head.state_dict())

    def encode_text(self, vocabulary: Vocabulary) -> TextFeatures:
        """Text features of parts and objects. Keep them only while the weights do not change."""
        parts = vocabulary.prompts("part", self.template)
        objects = vocabulary.prompts("object", self.template)
        features = encode_prompts(self.backbone, [*parts, *objects], device=self.background.device)
        return TextFeatures(background=self.background, part=features[: len(parts)], object=features[len(parts) :])

    def forward(
        self,
        images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"],
        vocabulary: Vocabulary,
        *,
        text: TextFeatures | None = None,
        attention_layers: tuple[int, ...] = (),
        part_masks: bool = True,
    ) -> Outputs:
        """Logits [B, K + 1], [B, O + 1] (background last) and [B, P]; images are uint8 0..255 or float 0..1.

        Attention holds all E prompts in the order parts, objects, background. Without `part_masks` the [B, P] are left
        out: the training loss reads them, no protocol does.
        """
        text = self.encode_text(vocabulary) if text is None else text
        sizes = [0 if x is None else len(x) for x in (text.part, text.object)]
        if sizes != [vocabulary.num_parts, vocabulary.num_objects]:
            raise ValueError("these text features are not from this model's encode_text with this vocabulary")
        pairs = PairIndex(*(ids.to(images.device) for ids in self.pair_index(vocabulary)))
        return self.segment(images, text, pairs, attention_layers=attention_layers, part_masks=part_masks)

    def pair_index(self, vocabulary: Vocabulary) -> PairIndex:
        """Which tokens and prompts make each object-part of a vocabulary."""
        object_of, part_of = (torch.from_numpy(ids.copy()) for ids in (vocabulary.object_of, vocabulary.part_of))
        if self.official_object_text_index:
            return PairIndex(object_of, part_of, torch.tensor(official_text_rows(vocabulary))[object_of])
        return PairIndex(object_of, part_of, vocabulary.num_parts + object_of)

    def segment(
        self,
        images: Tensor,
        text: TextFeatures,
        pairs: PairIndex,
        *,
        attention_layers: tuple[int, ...] = (),
        part_masks: bool = True,
    ) -> Outputs:
        """`forward` without names: what torch.export and torch.compile see."""
        if text.part is None or text.object is None:
            raise ValueError(
                "PartCLIPSeg needs text features of parts and objects; this model's encode_text makes them"
            )
        grid = self.backbone.grid(images)
        reduced = reduce_image(images, backbone=self.backbone, adapter=self.adapter, decoder=self.decoder)
        prompts = torch.cat([text.part, text.object, text.background])
        tokens, attention = self.decoder.tokens(reduced, prompts, grid=grid, attention_layers=attention_layers)
        num_parts = len(text.part)
        skipped = 0 if part_masks else num_parts
        logits = self.decoder.masks(self.decoder.head, tokens[:, skipped:], grid=grid)
        return Outputs(
            object_part=self._pair_masks(tokens, prompts, num_parts, pairs, grid=grid),
            object=logits[:, num_parts - skipped :],
            part=logits[:, :num_parts] if part_masks else None,
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
        part_rows = F.pad(index.part_of, (0, 1), value=num_parts)
        object_rows = F.pad(index.object_of, (0, 1), value=obj.shape[1] - 1)
        last = len(prompts) - 1
        part_text = prompts[F.pad(index.part_of, (0, 1), value=last)]
        object_text = prompts[F.pad(index.text_row, (0, 1), value=last)]
        text = self.pair.text(torch.cat([object_text, part_text], dim=1))

        def run(pairs: slice) -> Tensor:
            return self.pair.masks(part[:, part_rows[pairs]] + obj[:, object_rows[pairs]], text[pairs], grid=grid)

        return over_prompts(
            run, len(text), chunk=self.decoder.chunk(tokens, masks=True), recompute=self.decoder.checkpointing
        )
