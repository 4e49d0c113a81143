"""Exact argmax of bilinearly upsampled logits, without ever holding the upsampled volume.

Equal, pixel for pixel, to `F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(0)`, first index on
ties: channels are upsampled by that very function a few at a time, and channels that cannot win anywhere are left out.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 16
"""Side of the blocks, in network pixels, for which `candidates` bounds every channel."""

ROUNDING = 1e-5
"""Bilinear weights sum to 1 within a few ulp (6e-8); bounds are widened by this much of the largest value."""

CPU_CHUNK, DEVICE_CHUNK = 1 << 22, 1 << 25
"""Upsampled values per step: a CPU wants them near its cache, an accelerator wants few kernel launches."""


SMALL = 128
"""Up to this height + width torch upsamples with kernels whose last bit depends on the position of a channel."""


Box = tuple[int, int, int, int]
"""Top, left, bottom, right in label pixels; bottom and right are exclusive."""


def argmax(
    logits: Float[Tensor, "C H W"],
    size: tuple[int, int],
    *,
    channels: Int[Tensor, " n"] | None = None,
    box: Box | None = None,
    chunk: int | None = None,
) -> Int[Tensor, "h w"]:
    """int32 id of the channel with the highest upsampled value at each pixel of `size`, the lower id on ties.

    `channels` are the ids to choose from, ascending (default: all). With `box` only that part of the map is returned.
    `chunk` is the number of channels upsampled at a time (default: by memory); it never changes the result. ValueError
    when a logit in question is not finite.
    """
    box = box or (0, 0, *size)
    shape = (box[2] - box[0], box[3] - box[1])
    ids = torch.arange(len(logits), device=logits.device) if channels is None else channels
    rows, columns = (_sources(n, size[d], (box[d], box[d + 2])) for d, n in enumerate(logits.shape[1:]))
    ids = ids[candidates(_channels(logits[:, rows, columns], ids))]
    if len(ids) == 1:
        return ids.to(torch.int32).expand(shape).contiguous()
    if chunk is None:
        chunk = max(1, (CPU_CHUNK if logits.device.type == "cpu" else DEVICE_CHUNK) // (box[2] * box[3]))
    if size[0] + size[1] <= SMALL or len(logits) <= 4:
        chunk = len(ids)
    best, position = _first_maximum(_upsample_some(logits, ids[:chunk], size, box))
    for start in range(chunk, len(ids), chunk):
        value, local = _first_maximum(_upsample_some(logits, ids[start : start + chunk], size, box))
        better = torch.gt(value, best, out=torch.empty_like(best))
        position.addcmul_(better, local.add_(start).sub_(position))
        torch.maximum(best, value, out=best)
    return ids.to(torch.int32).index_select(0, position.flatten().int()).view(shape)


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


def _upsample_some(logits: Tensor, ids: Tensor, size: tuple[int, int], box: Box) -> Tensor:
    """Upsampled channels `ids` inside the box, bit for bit as upsampling everything at once gives them.

    Below SMALL, and for four channels and fewer, that is what is done. Otherwise three channels must not go alone:
    torch has a kernel for RGB pictures whose weights are rounded differently (4e-5 at 375 x 500).
    """
    top, left, bottom, right = box
    if size[0] + size[1] <= SMALL or len(logits) <= 4:
        return _whole(logits, size)[ids, top:bottom, left:right]
    padded = ids[[0, 1, 2, 2]] if len(ids) == 3 else ids
    width = max(right, min(size[1], SMALL + 1 - bottom))
    height = max(bottom, SMALL + 1 - width)
    return _top_left(logits, padded, size, (height, width))[: len(ids), top:bottom, left:right]


def _channels(logits: Tensor, ids: Tensor) -> Tensor:
    """Channels `ids`: a view where they follow each other, as the parts of one object mostly do."""
    first, last = int(ids[0]), int(ids[-1])
    return logits[first : last + 1] if last + 1 - first == len(ids) else logits.index_select(0, ids)


def _whole(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.float()[None], size=size, mode="bilinear", align_corners=False)[0]


def _top_left(logits: Tensor, ids: Tensor, size: tuple[int, int], extent: tuple[int, int]) -> Tensor:
    """The first rows and columns, at least `extent`, of channels `ids` upsampled to `size`.

    Bottom and right are cut off exactly, by giving torch the scale instead of the size. Top and left cannot be: source
    positions are computed from the output's origin.
    """
    cuts = [_cut(*lengths) for lengths in zip(logits.shape[1:], size, extent)]
    if any(cut is None for cut in cuts):
        return _whole(_channels(logits, ids), size)
    (rows, height), (columns, width) = (cut for cut in cuts if cut is not None)
    scales = [out / source for out, source in zip(size, logits.shape[1:])]
    return torch.ops.aten.upsample_bilinear2d(
        _channels(logits[:, :rows, :columns], ids)[None].float().contiguous(), [height, width], False, *scales
    )[0]


def _cut(source: int, out: int, extent: int) -> tuple[int, int] | None:
    """(source rows, output rows) with which torch computes the first `extent` of `out` rows; None if it would round
    the given scale otherwise than its own.
    """
    if np.float32(1 / (out / source)) != np.float32(source) / np.float32(out):
        return None
    needed = _sources(source, out, (0, extent)).stop
    if needed == extent and source != out:  # torch takes equal sizes for a copy, whatever the scale
        needed, extent = (needed + 1, extent) if needed < source else (needed, extent + 1)
    return needed, extent


def _sources(source: int, out: int, span: tuple[int, int]) -> slice:
    """Source rows (of `source`) that the output rows `span` (of `out`) read, and one more on each side."""
    first, last = ((pixel + 0.5) * source / out - 0.5 for pixel in (span[0], span[1] - 1))
    return slice(max(0, int(first) - 1), min(source, int(last) + 3))


def _first_maximum(values: Tensor) -> tuple[Tensor, Tensor]:
    """(maximum over channels, index of the first channel that reaches it); overwrites `values`.

    Indices are whole numbers in float32: several times faster on a CPU than `max(0)`, whose index kernel and boolean
    comparisons are not vectorised.
    """
    best = values.amax(0)
    count = len(values)
    descending = torch.arange(count, 0, -1, dtype=values.dtype, device=values.device)
    return best, values.eq_(best).mul_(descending[:, None, None]).amax(0).neg_().add_(count)
