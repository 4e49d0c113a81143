"""CLIP's text tower alone, frozen: VLPart takes that of CLIP RN50 and none of its image tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from open_clip.model import _build_text_tower
from torch import Tensor, nn

from partseg.backbones.clip_vit import clip_config, spread_text_tower, text_features
from partseg.text.encoder import PromptCache, clip_tokenizer, encode_prompts


class TextTower(nn.Module):
    """The text tower of the open_clip model `name` (or a shipped tiny one), with random weights until some are loaded.

    `spread_text` starts a random tower so that prompts differ (`backbones.clip_vit.spread_text_tower`).
    """

    def __init__(self, name: str = "RN50-quickgelu", *, spread_text: bool = False) -> None:
        super().__init__()
        self.name = name
        config = clip_config(name)
        self.clip = _build_text_tower(config["embed_dim"], config["text_cfg"], config.get("quick_gelu", False))
        self.dim = int(config["embed_dim"])
        self.tokenizer = clip_tokenizer()
        if spread_text:
            spread_text_tower(self)  # type: ignore[arg-type]
        self._prompts = PromptCache()
        self.requires_grad_(False)

    @property
    def context_length(self) -> int:
        """Longest prompt in tokens, start and end included."""
        return int(self.clip.context_length)

    def encode_tokens(self, tokens: Int[Tensor, "N L"]) -> Float[Tensor, "N D"]:
        """Projected, not normalised features at the end token."""
        return text_features(self.clip, tokens)

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Features of the prompts; each distinct one is computed once."""
        device = self.clip.positional_embedding.device
        weights = list(self.clip.parameters())
        with torch.no_grad():
            return self._prompts.features(
                prompts, lambda new: encode_prompts(self, new, device=device), weights=weights
            )
