"""Blocks of CLIPSeg's decoder, written so that nothing is computed or saved twice.

Legend: S sequences (image, prompt), N tokens with CLS, T tokens without, w decoder width, D text width, h w cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

CPU_HIDDEN = 1 << 21
"""Hidden activations per pass of the feed-forward on a CPU: they then stay in the cache (4x faster)."""

GPU_HIDDEN = 1 << 27
"""The same on a GPU, where it only bounds memory (0.5 GiB in fp32)."""

CPU_MASK_INPUT = 1 << 19
"""Token values per pass of a mask head on a CPU, for the same reason: 16 masks at paper size."""


_WIDE = {8: torch.float64, 16: torch.complex128}
"""A type of so many bytes, to copy neighbouring pixels at once."""


class VisualAdapter(nn.Module):
    """x <- ratio * adapter(x) + (1 - ratio) * x with a bottleneck of a quarter of the width, no biases."""

    def __init__(self, dim: int, *, ratio: float = 0.2) -> None:
        super().__init__()
        self.ratio = ratio
        self.down = nn.Linear(dim, dim // 4, bias=False)
        self.up = nn.Linear(dim // 4, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
        """Adapted features."""
        return self.ratio * F.relu(self.up(F.relu(self.down(x)))) + (1 - self.ratio) * x


class Film(nn.Module):
    """x <- mul(text) * x + add(text), one text vector per prompt."""

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.mul = nn.Linear(text_dim, width)
        self.add = nn.Linear(text_dim, width)

    def forward(self, x: Float[Tensor, " B #E N w"], text: Float[Tensor, "E D"]) -> Float[Tensor, "B E N w"]:
        """Every token of prompt e modulated by text e; `x` may have one row for all prompts."""
        return torch.addcmul(self.add(text)[:, None], self.mul(text)[:, None], x)


class FeedForward(nn.Module):
    """Linear, ReLU, Linear. The hidden activation is never stored: backward computes it again, a slice at a time.

    That costs one of six matrix products and saves 32 of the 40 activations of a decoder layer; on a CPU a slice stays
    in the cache. Autograd written by hand, which added to the weights' sums in place, took 2 % less of a training step
    at paper size (`tools/benchmark.py model=part_clipseg`, 4.41 against 4.51 units on one core) and 80 lines more.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch w"]) -> Float[Tensor, "*batch w"]:
        """Applied token by token."""
        if torch.compiler.is_compiling():
            return self._mlp(x)
        tokens = max(1, (CPU_HIDDEN if x.device.type == "cpu" else GPU_HIDDEN) // self.fc1.out_features)
        slices = x.reshape(-1, x.shape[-1]).split(tokens)
        if torch.is_grad_enabled():
            done = [checkpoint(self._mlp, each, use_reentrant=False, preserve_rng_state=False) for each in slices]
        else:
            done = [self._mlp(each) for each in slices]
        return torch.cat(done).view(x.shape)

    def _mlp(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x), inplace=True))


class DecoderLayer(nn.Module):
    """Post-norm transformer layer; also returns its queries and keys, which are views of what autograd keeps anyway."""

    def __init__(self, width: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"decoder width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, hidden)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "S N w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Output [S, N, w], queries and keys [S, heads, N, w / heads]."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.mlp(x)), q, k


class MaskHead(nn.Module):
    """conv 3x3, ReLU, deconv a x a, ReLU, deconv b x b with a * b = patch: tokens -> one logit per pixel.

    A transposed convolution whose stride is its kernel sends each cell to its own block of pixels, so both are matrix
    products over tokens, and pixels are put in place once, at the end, where there is one channel left.
    `prior` is the probability that an untrained head gives to every pixel, about half if None.
    """

    def __init__(self, width: int, *, patch_size: int, prior: float | None = None) -> None:
        super().__init__()
        if prior is not None and not 0 < prior < 1:
            raise ValueError(f"mask_prior must lie between 0 and 1, got {prior}")
        first = next(a for a in range(1, patch_size + 1) if patch_size % a == 0 and a * a >= patch_size)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(width, width // 2, first, stride=first)
        self.up2 = nn.ConvTranspose2d(width // 2, 1, patch_size // first, stride=patch_size // first)
        if prior is not None:
            nn.init.constant_(self.up2.bias, math.log(prior / (1 - prior)))  # type: ignore[arg-type]

    def forward(self, tokens: Float[Tensor, "S T w"], grid: tuple[int, int]) -> Float[Tensor, "S H W"]:
        """Logits of each sequence at grid * patch pixels."""
        (rows, columns), a, b = grid, self.up1.stride[0], self.up2.stride[0]
        count, _, width = tokens.shape
        # Tokens are channels-last already: the convolution reads and writes them without a copy.
        x = self.conv(tokens.reshape(count, rows, columns, width).permute(0, 3, 1, 2))
        x = F.relu(x, inplace=True).permute(0, 2, 3, 1)
        middle = self.up1.out_channels
        up1 = self.up1.weight.permute(2, 3, 1, 0).reshape(a * a * middle, width)
        x = F.relu(F.linear(x, up1, self.up1.bias.repeat(a * a)), inplace=True)  # type: ignore[union-attr]
        up2 = self.up2.weight.reshape(middle, b * b).t()
        x = F.linear(x.reshape(-1, middle), up2, self.up2.bias.expand(b * b))  # type: ignore[union-attr]
        return _place(x.view(count, rows, columns, a, a, b, b))

    def masks(self, tokens: Float[Tensor, "B E T w"], grid: tuple[int, int]) -> Float[Tensor, "B E H W"]:
        """`forward` for each image and prompt."""
        logits = self(tokens.flatten(0, 1), grid)
        return logits.view(*tokens.shape[:2], *logits.shape[1:])


def _place(blocks: Float[Tensor, "S h w a a b b"]) -> Float[Tensor, "S H W"]:
    """Blocks of pixels within blocks of pixels, moved to where they lie in the picture."""
    sequences, rows, columns, a, _, b, _ = blocks.shape
    placed = _to_picture(blocks) if torch.compiler.is_compiling() else _Place.apply(blocks)
    return placed.view(sequences, rows * a * b, columns * a * b)


class _Place(torch.autograd.Function):
    """`_to_picture`, whose copies autograd could not follow, and the way back."""

    @staticmethod
    def forward(ctx: FunctionCtx, blocks: Tensor) -> Tensor:
        return _to_picture(blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        return _permuted(grad, (0, 1, 4, 2, 5, 3, 6))


def _to_picture(blocks: Float[Tensor, "S h w a a b b"]) -> Float[Tensor, "S h a b w a b"]:
    return _permuted(blocks, (0, 1, 3, 5, 2, 4, 6))


def _permuted(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Contiguous x.permute(order), whose last dimension stays last: on a CPU it moves as one number, 4 times faster.

    In a step of the quickstart's network, on one core, the moves take 28 instead of 44 ms of 140; at paper size the
    plain copy would cost 1 %.
    """
    wide = _WIDE.get(x.shape[-1] * x.element_size())
    if wide is None or x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.permute(order).contiguous()
    x = x.contiguous()
    if x.storage_offset() % x.shape[-1]:  # a slice that starts in the middle of a wide number
        x = x.clone()
    return x.view(wide).permute(order).contiguous().view(x.dtype)


def over_prompts(
    function: Callable[[slice], Tensor], count: int, *, chunk: int, recompute: bool = False
) -> Float[Tensor, "B E ..."]:
    """cat([function(slice) for slices of `chunk` prompts], dim=1), each recomputed in backward if asked."""

    def run(prompts: slice) -> Tensor:
        if recompute and torch.is_grad_enabled():
            return checkpoint(function, prompts, use_reentrant=False, preserve_rng_state=False)
        return function(prompts)

    if chunk >= count:
        return run(slice(0, count))
    return torch.cat([run(slice(i, min(i + chunk, count))) for i in range(0, count, chunk)], dim=1)
