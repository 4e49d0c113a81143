"""CLIP's ResNet towers by open_clip: three image maps, the last through a dense attention pool, and features per word.

Legend: B images, E phrases, L tokens of the longest phrase, W width of the text tower, D width of CLIP's common space.
"""

from __future__ import annotations

from collections.abc import Sequence

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from partseg.backbones.clip_layouts import resize_position
from partseg.backbones.clip_vit import clip_config
from partseg.text.encoder import clip_tokenizer, tokenize
from partseg.utils.devices import send


class ClipResNet(nn.Module):
    """Both towers of a CLIP ResNet; `name` is an open_clip model, a shipped tiny one, or a path to a JSON config.

    Phrases have at most `word_length` tokens, start and end included; longer ones are refused, or cut with `cut_long`.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        name: str = "RN50-quickgelu",
        *,
        word_length: int = 17,
        cut_long: bool = False,
        image_mean: Sequence[float] = open_clip.OPENAI_DATASET_MEAN,
        image_std: Sequence[float] = open_clip.OPENAI_DATASET_STD,
    ) -> None:
        super().__init__()
        self.name = name
        self.clip = open_clip.CLIP(**clip_config(name))
        if not isinstance(self.clip.visual, ModifiedResNet):
            raise ValueError(f"{name} is not a CLIP ResNet; use RN50-quickgelu or RN101-quickgelu")
        self.tokenizer = clip_tokenizer()
        if self.clip.vocab_size != self.tokenizer.vocab_size:
            raise ValueError(f"{name} has {self.clip.vocab_size} tokens, CLIP's has {self.tokenizer.vocab_size}")
        if not 3 <= word_length <= self.clip.context_length:
            raise ValueError(f"word_length={word_length} must lie between 3 and {self.clip.context_length}")
        self.word_length = word_length
        self.cut_long = cut_long
        red, green, blue = (round(255 * mean) for mean in image_mean)
        self.fill = (red, green, blue)
        pool = self.clip.visual.attnpool
        self.connect = nn.Sequential(
            nn.Conv2d(pool.c_proj.in_features, pool.c_proj.out_features, 1, bias=False),
            nn.BatchNorm2d(pool.c_proj.out_features),
        )
        # Stored, so that every checkpoint of ours tells with which activation it was trained.
        self.register_buffer("uses_quick_gelu", torch.tensor(self.quick_gelu))
        self.register_buffer("image_mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(3, 1, 1), persistent=False)

    @property
    def quick_gelu(self) -> bool:
        """Whether the text tower uses x * sigmoid(1.702 x), as OpenAI's weights need."""
        return isinstance(self.clip.transformer.resblocks[0].mlp.gelu, QuickGELU)

    @property
    def image_dims(self) -> tuple[int, int, int]:
        """Channels of the three maps of `encode_image`."""
        pool = self.clip.visual.attnpool
        return pool.c_proj.in_features // 4, pool.c_proj.in_features // 2, pool.c_proj.out_features

    @property
    def word_dim(self) -> int:
        """W."""
        return int(self.clip.ln_final.normalized_shape[0])

    @property
    def state_dim(self) -> int:
        """D."""
        return int(self.clip.text_projection.shape[1])

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps at 1/8, 1/16 and 1/32 of the image's size; images are uint8 0..255 or float 0..1."""
        visual = self.clip.visual
        x = images / 255 if images.dtype == torch.uint8 else images
        x = visual.stem((x - self.image_mean) / self.image_std)
        c3 = visual.layer2(visual.layer1(x))
        c4 = visual.layer3(c3)
        return c3, c4, self._dense_pool(visual.layer4(c4))

    def _dense_pool(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """CLIP's attention pool without its mean token: every position is a query; a new branch is added."""
        pool, grid = self.clip.visual.attnpool, (x.shape[2], x.shape[3])
        side = round((len(pool.positional_embedding) - 1) ** 0.5)
        tokens = x.flatten(2).transpose(1, 2) + resize_position(
            pool.positional_embedding, stored=(side, side), grid=grid
        )[1:].to(x.dtype)
        q, k, v = (
            project(tokens).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
            for project in (pool.q_proj, pool.k_proj, pool.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return F.relu(pool.c_proj(mixed).transpose(1, 2).unflatten(2, grid) + self.connect(x))

    def encode_phrases(
        self, phrases: Sequence[str]
    ) -> tuple[Float[Tensor, "E L W"], Bool[Tensor, "E L"], Float[Tensor, "E D"]]:
        """Features per token, which tokens are padding, and the features of the whole phrases."""
        tokens = tokenize(self.tokenizer, phrases, context_length=self.word_length, cut=self.cut_long)
        return self.encode_tokens(send(tokens, self.clip.positional_embedding.device))

    def encode_tokens(
        self, tokens: Int[Tensor, "E L"]
    ) -> tuple[Float[Tensor, "E L W"], Bool[Tensor, "E L"], Float[Tensor, "E D"]]:
        """`encode_phrases` of token ids; what follows the end token, which has the largest id, is padding."""
        clip, length = self.clip, tokens.shape[1]
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        words = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        last = tokens.argmax(dim=1)
        places = torch.arange(length, device=tokens.device)
        state = words[torch.arange(len(words), device=tokens.device), last] @ clip.text_projection
        return words, places > last[:, None], state
