"""Exact argmax of bilinearly upsampled logits, without ever holding the upsampled volume.

Equal, pixel for pixel, to `F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(0)`, first index on
ties: channels are upsampled by that very function a few at a time, and channels that cannot win anywhere are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 16
"""Side of the blocks, in network pixels, for which `candidates` bounds every channel."""

ROUNDING = 1e-5
"""Bilinear weights sum to 1 within a few ulp (6e-8); bounds are widened by this much of the largest value."""

CPU_CHUNK, DEVICE_CHUNK = 1 << 20, 1 << 25
"""Upsampled values per step: a CPU wants them in its cache, an accelerator wants few kernel launches."""


SMALL = 128
"""Up to this height + width torch upsamples with kernels whose last bit depends on the position of a channel."""


def argmax(
    logits: Float[Tensor, "C H W"],
    size: tuple[int, int],
    *,
    channels: Int[Tensor, " n"] | None = None,
    chunk: int | None = None,
) -> Int[Tensor, "h w"]:
    """int32 id of the channel with the highest upsampled value at each pixel of `size`, the lower id on ties.

    `channels` are the ids to choose from, ascending (default: all). `chunk` is the number of channels upsampled at a
    time (default: by memory); it never changes the result. ValueError when a logit in question is not finite.
    """
    ids = torch.arange(len(logits), device=logits.device) if channels is None else channels
    ids = ids[candidates(logits if channels is None else logits[ids])]
    if len(ids) == 1:
        return ids.to(torch.int32).expand(size).contiguous()
    if size[0] + size[1] <= SMALL or len(logits) <= 4:
        best, position = _first_maximum(_upsample(logits, size)[ids])
        return ids.to(torch.int32).index_select(0, position.flatten().int()).view(size)
    if chunk is None:
        chunk = max(1, (CPU_CHUNK if logits.device.type == "cpu" else DEVICE_CHUNK) // (size[0] * size[1]))
    best, position = _first_maximum(_upsample_some(logits, ids[:chunk], size))
    for start in range(chunk, len(ids), chunk):
        value, local = _first_maximum(_upsample_some(logits, ids[start : start + chunk], size))
        better = torch.gt(value, best, out=torch.empty_like(best))
        position.addcmul_(better, local.add_(start).sub_(position))
        torch.maximum(best, value, out=best)
    return ids.to(torch.int32).index_select(0, position.flatten().int()).view(size)


def candidates(logits: Float[Tensor, "C H W"]) -> Int[Tensor, " n"]:
    """Ascending ids of the channels that may have the highest upsampled value at some pixel.

    An upsampled value lies between the lowest and the highest of the four values around it. A channel is left out when
    in every block its highest value stays below some other channel's lowest.
    """
    logits = logits.float()
    high = _pool_columns(_pool_rows(logits, highest=True))
    low = -_pool_columns(-_pool_rows(logits, highest=False))
    scale = torch.maximum(high.abs().amax(), low.abs().amax())
    if not torch.isfinite(scale):
        raise ValueError(
            "the network's scores are not finite (NaN or infinite): the weights or the precision are broken"
        )
    reach = high >= low.amax(0) - ROUNDING * scale
    return reach.flatten(1).any(1).nonzero().flatten()


def _pool_rows(logits: Tensor, *, highest: bool) -> Tensor:
    """[C, blocks, W] highest (or lowest) of BLOCK rows and the first row of the next block."""
    height = logits.shape[1]
    whole = height // BLOCK
    reduce, combine = (torch.amax, torch.maximum) if highest else (torch.amin, torch.minimum)
    blocks = [reduce(logits[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)), 2)] if whole else []
    if height % BLOCK:
        blocks.append(reduce(logits[:, whole * BLOCK :], 1, keepdim=True))
    pooled = torch.cat(blocks, 1)
    pooled[:, :-1] = combine(pooled[:, :-1], logits[:, BLOCK::BLOCK])
    return pooled


def _pool_columns(rows: Tensor) -> Tensor:
    """[C, blocks, blocks] highest of BLOCK columns and the first column of the next block."""
    if rows.shape[2] <= BLOCK + 1:
        return rows.amax(2, keepdim=True)
    return F.max_pool1d(rows, BLOCK + 1, BLOCK, ceil_mode=True)


def _upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.float()[None], size=size, mode="bilinear", align_corners=False)[0]


def _upsample_some(logits: Tensor, ids: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsampled channels `ids`. Three at once would take torch's kernel for RGB pictures, whose weights are rounded
    differently (4e-5 at 375 x 500), so a fourth is added and dropped.
    """
    if len(ids) == 3:
        return _upsample(logits[ids[[0, 1, 2, 2]]], size)[:3]
    return _upsample(logits[ids], size)


def _first_maximum(values: Tensor) -> tuple[Tensor, Tensor]:
    """(maximum over channels, index of the first channel that reaches it); overwrites `values`.

    Indices are whole numbers in float32: several times faster on a CPU than `max(0)`, whose index kernel and boolean
    comparisons are not vectorised.
    """
    best = values.amax(0)
    count = len(values)
    descending = torch.arange(count, 0, -1, dtype=values.dtype, device=values.device)
    return best, values.eq_(best).mul_(descending[:, None, None]).amax(0).neg_().add_(count)
