"""CLIP as a dense encoder: the last image block keeps only its value path, so that cells stay where they are.

Legend: B images, N tokens with CLS, C tower width, D embedding width, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from partseg.backbones.clip_vit import ClipBackbone, clip_config

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SPLIT = "attn.parametrizations.in_proj_weight.original"
"""Where the three matrices of a split attention are, with 0, 1 or 2 (query, key, value) behind it."""


@dataclass(frozen=True)
class DenseFeatures:
    """Embedded cells of a picture, and the maps after the guidance blocks."""

    cells: Float[Tensor, "B D h w"]
    blocks: tuple[Float[Tensor, "B C h w"], ...]


class DenseClip(ClipBackbone):
    """A CLIP ViT whose image tower embeds every cell; `guidance_blocks` count from zero.

    `residual` is what the last block adds its values to: each token's `own` (v1) or the `cls` token (CVPR 2024).
    `split_attention` keeps queries, keys and values apart, so that some of them train and others neither train nor
    decay (CVPR 2024 trains queries and values).
    """

    def __init__(
        self,
        name: str = "ViT-B-16-quickgelu",
        *,
        pretrained: str | None = None,
        guidance_blocks: Sequence[int] = (),
        residual: Literal["own", "cls"] = "own",
        split_attention: bool = False,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        spread_text: bool = False,
    ) -> None:
        if residual not in ("own", "cls"):
            raise ValueError(f"residual={residual!r} is not 'own' or 'cls'")
        before_last = clip_config(name)["vision_cfg"]["layers"] - 2
        super().__init__(
            name,
            pretrained=pretrained,
            feature_blocks=sorted({*guidance_blocks, before_last}),
            image_mean=image_mean,
            image_std=image_std,
            spread_text=spread_text,
        )
        if before_last < 0 or self.feature_blocks[-1] != before_last:
            raise ValueError(f"guidance_blocks {list(guidance_blocks)} of {name} must lie in 0..{before_last}")
        self.guidance_blocks = tuple(guidance_blocks)
        self.residual, self.split_attention = residual, split_attention
        if split_attention:
            for block in [*self.clip.visual.transformer.resblocks, *self.clip.transformer.resblocks]:
                register_parametrization(block.attn, "in_proj_weight", _Stacked())

    def unused_parameters(self) -> frozenset[str]:
        """CLIP's scale, and queries and keys of the last image block where they are apart."""
        last = f"clip.visual.transformer.resblocks.{len(self.clip.visual.transformer.resblocks) - 1}.{SPLIT}"
        prefixes = ("clip.logit_scale", "clip.logit_bias", f"{last}0", f"{last}1")
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(prefixes))

    def encode_cells(self, images: Tensor) -> DenseFeatures:
        """Cells of images as `encode_image` takes them: in the space of texts, not normalised."""
        rows, columns = self.grid(images)
        features = dict(zip(self.feature_blocks, self.encode_image(images), strict=True))
        cells = self._last_block(features[self.feature_blocks[-1]])
        cells = self.clip.visual.ln_post(cells) @ self.clip.visual.proj
        blocks = (features[i] for i in self.guidance_blocks)
        maps = [each[:, 1:].transpose(1, 2).unflatten(2, (rows, columns)) for each in (cells, *blocks)]
        return DenseFeatures(maps[0], tuple(maps[1:]))

    def _last_block(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        block = self.clip.visual.transformer.resblocks[-1]
        width = x.shape[-1]
        attention = block.attn
        values = F.linear(block.ln_1(x), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
        x = (x if self.residual == "own" else x[:, :1]) + block.ls_1(attention.out_proj(values))
        return x + block.ls_2(block.mlp(block.ln_2(x)))


class _Stacked(nn.Module):
    """in_proj_weight as three parameters."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([q, k, v])

    def right_inverse(self, stacked: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.clone() for part in stacked.chunk(3))
