"""CLIPSeg's decoder: image tokens and prompt embeddings -> one 64-wide token map and one mask per prompt.

Legend: B images, E prompts, N tokens with CLS, T without, C image width, D text width, w decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from partseg.systems.clipseg.layers import CPU_MASK_INPUT, DecoderLayer, Film, MaskHead, over_prompts

ALL = 1 << 30
"""A chunk that no vocabulary exceeds."""


@dataclass(frozen=True)
class DecoderAttention:
    """Queries and keys of one decoder layer for all prompts: attention rows are computed from them on demand.

    Token 0 is CLS; tokens 1..T are the `grid` (rows, columns) in row-major order.
    Row i of the map of prompt e, image b is softmax(query[b, e, :, i] @ key[b, e].T * scale), mean over heads.
    """

    query: Float[Tensor, "B E heads tokens d"]
    key: Float[Tensor, "B E heads tokens d"]
    scale: float
    grid: tuple[int, int]


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of the decoder, and where untrained masks start; the defaults are CLIPSeg rd64-refined's.

    `mask_prior` is the probability every pixel starts with. Half, as with any random layer, is far from the share of
    pixels that belong to one class: from random weights a small one saves the steps that would only learn that (the
    prior of Lin et al., Focal Loss for Dense Object Detection, 2017, section 4.1). Loaded weights replace it.
    """

    width: int = 64
    heads: int = 4
    hidden: int = 2048
    mask_prior: float | None = None


class Decoder(nn.Module):
    """Transformer layers, the first modulated by the prompt, on the sum of reduced image features, deepest first.

    `prompt_chunk` (image, prompt) sequences run at once when gradients are off; results do not depend on it.
    `checkpointing` recomputes layers and heads in backward and keeps only their inputs.
    """

    def __init__(
        self,
        shape: DecoderShape,
        *,
        image_dim: int,
        text_dim: int,
        num_layers: int,
        patch_size: int,
        prompt_chunk: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        if prompt_chunk < 1:
            raise ValueError(f"prompt_chunk must be at least 1, got {prompt_chunk}")
        self.prompt_chunk = prompt_chunk
        self.checkpointing = checkpointing
        self.heads = shape.heads
        self.film = Film(text_dim, shape.width)
        self.head = MaskHead(shape.width, patch_size=patch_size, prior=shape.mask_prior)
        self.reduces = nn.ModuleList(nn.Linear(image_dim, shape.width) for _ in range(num_layers))
        self.layers = nn.ModuleList(
            DecoderLayer(shape.width, heads=shape.heads, hidden=shape.hidden) for _ in range(num_layers)
        )

    def reduce(self, features: Sequence[Float[Tensor, "B N C"]]) -> list[Float[Tensor, "B 1 N w"]]:
        """Image features in the order of the layers. They do not depend on the prompt: call once per image."""
        return [reduce(x)[:, None] for reduce, x in zip(self.reduces, reversed(features), strict=True)]

    def tokens(
        self,
        reduced: Sequence[Float[Tensor, "B 1 N w"]],
        text: Float[Tensor, "E D"],
        *,
        grid: tuple[int, int],
        attention_layers: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "B E T w"], dict[int, DecoderAttention]]:
        """Token maps of every prompt (CLS dropped), and queries and keys of the layers asked for."""
        unknown = sorted(set(attention_layers) - set(range(len(self.layers))))
        if unknown:
            raise ValueError(
                f"attention_layers {unknown} do not exist: the decoder has layers 0..{len(self.layers) - 1}"
            )
        kept: dict[int, list[tuple[Tensor, Tensor]]] = {i: [] for i in attention_layers}

        def run(prompts: slice) -> Tensor:
            x, pairs = self._run_layers(reduced, text[prompts])
            for i, stack in kept.items():
                stack.append(pairs[i])
            return x

        out = over_prompts(run, len(text), chunk=self.chunk(reduced[0], masks=False))
        scale = (out.shape[-1] // self.heads) ** -0.5
        attention = {i: _attention(pairs, scale=scale, grid=grid) for i, pairs in kept.items()}
        return out, attention

    def masks(
        self, head: MaskHead, tokens: Float[Tensor, "B E T w"], *, grid: tuple[int, int]
    ) -> Float[Tensor, "B E H W"]:
        """Logits of every prompt by `head`."""
        return over_prompts(
            lambda prompts: head.masks(tokens[:, prompts], grid),
            tokens.shape[1],
            chunk=self.chunk(tokens, masks=True),
            recompute=self.checkpointing,
        )

    def _run_layers(self, reduced: Sequence[Tensor], text: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        batch, _, length, width = reduced[0].shape
        pairs = []
        x = self.film(reduced[0], text)
        for i, layer in enumerate(self.layers):
            if i:
                x = x.view(batch, len(text), length, width) + reduced[i]
            x = x.reshape(-1, length, width)
            if self.checkpointing and torch.is_grad_enabled():
                x, query, key = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x, query, key = layer(x)
            pairs.append((query.unflatten(0, (batch, -1)), key.unflatten(0, (batch, -1))))
        return x.view(batch, len(text), length, width)[:, :, 1:], pairs

    def chunk(self, like: Tensor, *, masks: bool) -> int:
        """Prompts per pass for this batch."""
        if torch.compiler.is_compiling():
            return ALL
        sequences = ALL if torch.is_grad_enabled() else self.prompt_chunk
        if masks and like.device.type == "cpu":
            sequences = min(sequences, CPU_MASK_INPUT // (like.shape[-2] * like.shape[-1]))
        return max(1, sequences // like.shape[0])


def _attention(chunks: Sequence[tuple[Tensor, Tensor]], *, scale: float, grid: tuple[int, int]) -> DecoderAttention:
    query, key = (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for parts in zip(*chunks, strict=True))
    return DecoderAttention(query=query, key=key, scale=scale, grid=grid)
