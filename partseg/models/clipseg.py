"""CLIPSeg prompted with full object-part names ("dog head"): the baseline of the tables, partclipseg.md section 7.

Legend: B images, H W network size, K object-part classes, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from partseg.models.backbone import ClipBackbone
from partseg.models.decoder import Decoder, DecoderShape
from partseg.models.finetune import set_trainable
from partseg.models.layers import VisualAdapter
from partseg.structures import Outputs, TextFeatures
from partseg.text.encoder import encode_prompts
from partseg.text.templates import resolve_template
from partseg.vocabulary import Vocabulary

TEXT_EMBEDDINGS = ("backbone.clip.token_embedding.weight", "backbone.clip.positional_embedding")
"""What `train_text_embeddings` adds to `trainable`."""


class ClipSeg(nn.Module):
    """One prompt per object-part and a learned background vector; one mask per prompt.

    `trainable` are shell patterns of parameter names; the two `train_*` switches add the text embeddings and the
    background vector. `adapter_ratio=None` leaves the adapter out, which is CLIPSeg as published.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        trainable: Sequence[str] = ("adapter.*", "decoder.*"),
        train_text_embeddings: bool = True,
        train_background: bool = True,
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
        self.backbone = backbone
        self.adapter = None if adapter_ratio is None else VisualAdapter(backbone.image_dim, ratio=adapter_ratio)
        self.decoder = Decoder(
            decoder or DecoderShape(),
            image_dim=backbone.image_dim,
            text_dim=backbone.text_dim,
            num_layers=len(backbone.feature_blocks),
            patch_size=backbone.patch_size,
            prompt_chunk=prompt_chunk,
            checkpointing=decoder_checkpoint,
        )
        self.background = nn.Parameter(torch.randn(1, backbone.text_dim) * backbone.text_dim**-0.5)
        patterns = [*trainable, *TEXT_EMBEDDINGS * train_text_embeddings, *("background",) * train_background]
        set_trainable(self, patterns, unused=self.unused_parameters(), absent=("adapter",) * (adapter_ratio is None))

    def unused_parameters(self) -> frozenset[str]:
        """Names of parameters that no output depends on: late image blocks, CLIP's image projection and scale."""
        return frozenset(f"backbone.{name}" for name in self.backbone.unused_parameters())

    def encode_text(self, vocabulary: Vocabulary) -> TextFeatures:
        """Text features of the vocabulary. Keep them only while the weights do not change."""
        prompts = vocabulary.prompts("object_part", self.template)
        features = encode_prompts(self.backbone, prompts, device=self.background.device)
        return TextFeatures(background=self.background, object_part=features)

    def forward(
        self,
        images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"],
        vocabulary: Vocabulary,
        *,
        text: TextFeatures | None = None,
        attention_layers: tuple[int, ...] = (),
        part_masks: bool = True,
    ) -> Outputs:
        """Object-part logits [B, K + 1, H, W], background last; images are uint8 0..255 or float 0..1.

        `part_masks` is part of every model's interface and says nothing here: there are no masks of generalized parts.
        """
        text = self.encode_text(vocabulary) if text is None else text
        if text.object_part is None or len(text.object_part) != len(vocabulary):
            raise ValueError("these text features are not from this model's encode_text with this vocabulary")
        return self.segment(images, text, attention_layers=attention_layers)

    def segment(self, images: Tensor, text: TextFeatures, *, attention_layers: tuple[int, ...] = ()) -> Outputs:
        """`forward` without names: what torch.export and torch.compile see."""
        if text.object_part is None:
            raise ValueError("CLIPSeg needs text features of object-parts; this model's encode_text makes them")
        grid = self.backbone.grid(images)
        reduced = reduce_image(images, backbone=self.backbone, adapter=self.adapter, decoder=self.decoder)
        prompts = torch.cat([text.object_part, text.background])
        tokens, attention = self.decoder.tokens(reduced, prompts, grid=grid, attention_layers=attention_layers)
        return Outputs(object_part=self.decoder.masks(self.decoder.head, tokens, grid=grid), attention=attention)


def reduce_image(
    images: Tensor, *, backbone: ClipBackbone, adapter: VisualAdapter | None, decoder: Decoder
) -> list[Float[Tensor, "B 1 N w"]]:
    """Image -> adapted, reduced features of each decoder layer; once per image, whatever the number of prompts."""
    features = backbone.encode_image(images)
    if adapter is not None:
        features = [adapter(x) for x in features]
    return decoder.reduce(features)
