"""Self-attention of the decoder, averaged over the mask of each object-part that is present (PartCLIPSeg eq. 6).

Only the rows that are needed are computed from the queries and keys: rows of cells inside the masks, for the part and
the object prompt of the classes present. Rows are packed into tiles of equal size, so that any number of classes and
images costs a handful of batched products. N = present (image, class) pairs, T = cells of the token grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from partseg.labels import presence
from partseg.losses.term import compute_dtype
from partseg.systems.clipseg.decoder import DecoderAttention
from partseg.utils.devices import send
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.tables import table

_TILE = 32
"""Rows per tile: one (image, class, prompt) fills its last tile with rows of weight 0."""


@dataclass(frozen=True)
class MaskAttention:
    """How the maps A_c are made; hashable, so terms with equal options share one computation.

    `layers` are decoder layers, averaged. `mask_downsample`: `area` weighs a cell by the share of it that the mask
    covers; `nearest` takes the label of the cell's first pixel, which loses parts smaller than a cell.
    `normalise_by`: `mask` divides by the sum of the weights, `tokens` by the number of cells in the image.
    `halve_sum` takes the mean of the object's and the part's attention instead of their sum. The authors use `nearest`,
    `tokens` and the halved sum.
    """

    layers: tuple[int, ...] = (2,)
    mask_downsample: Literal["area", "nearest"] = "area"
    normalise_by: Literal["mask", "tokens"] = "mask"
    halve_sum: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        if not self.layers:
            raise ValueError("maps.layers is empty; name at least one decoder layer, for example [2]")
        if self.mask_downsample not in ("area", "nearest"):
            raise ValueError(f"maps.mask_downsample is {self.mask_downsample!r}; allowed are 'area' and 'nearest'")
        if self.normalise_by not in ("mask", "tokens"):
            raise ValueError(f"maps.normalise_by is {self.normalise_by!r}; allowed are 'mask' and 'tokens'")


@dataclass(frozen=True)
class AttentionMaps:
    """Maps A_c of all present classes, ordered by image, then class; `weights` are the masks on the token grid.

    `present`, `image` and `object_part` are where the labels are, the rest where the attention is.
    """

    present: Bool[Tensor, "B K"]
    image: Int[Tensor, " N"]
    object_part: Int[Tensor, " N"]
    weights: Float[Tensor, "N T"]
    maps: Float[Tensor, "N rows columns"]


def downsample_masks(
    labels: Int[Tensor, "B H W"], num_classes: int, *, grid: tuple[int, int], mode: Literal["area", "nearest"]
) -> Float[Tensor, "B C T"]:
    """Mask of every class on the token grid: share of each cell (`area`), or 0 / 1 by its first pixel (`nearest`)."""
    batch, height, width = labels.shape
    rows, columns = grid
    row = torch.arange(height, device=labels.device) * rows // height
    column = torch.arange(width, device=labels.device) * columns // width
    if mode == "nearest":
        first_row = (torch.arange(rows, device=labels.device) * height) // rows
        first_column = (torch.arange(columns, device=labels.device) * width) // columns
        labels = labels[:, first_row][:, :, first_column]
        row, column = torch.arange(rows, device=labels.device), torch.arange(columns, device=labels.device)
    cell = (row[:, None] * columns + column).flatten()
    # One slot more than classes takes everything that is no class, so that no pixel has to be filtered out.
    size = (num_classes + 1) * rows * columns
    # 32 bits where they suffice: 16 instead of 21 ms of one core for all indices of 8 images at 352 pixels
    kind = torch.int32 if batch * size < 1 << 31 else torch.int64
    index = labels.clamp(max=num_classes).flatten(1).to(kind) * (rows * columns) + cell.to(kind)
    index += torch.arange(batch, device=labels.device, dtype=kind)[:, None] * size
    pixels = torch.bincount(index.flatten(), minlength=batch * size).view(batch, num_classes + 1, rows * columns)
    per_cell = torch.bincount(cell, minlength=rows * columns)
    return pixels[:, :num_classes].double() / per_cell


def masked_attention(
    attention: Mapping[int, DecoderAttention],
    labels: Int[Tensor, "B H W"],
    *,
    vocabulary: Vocabulary,
    options: MaskAttention,
) -> AttentionMaps:
    """A_c of eq. 6 for each object-part class present in each image's `labels` (object-part ids).

    How many there are decides the shapes: with labels on the host nothing waits for the device.
    """
    layers = _layers(attention, vocabulary=vocabulary, options=options)
    grid = layers[0].grid
    dtype = compute_dtype(layers[0].query)
    num_classes = vocabulary.num_object_parts
    masks = downsample_masks(labels, num_classes, grid=grid, mode=options.mask_downsample)
    # a second pass over the labels costs as much as the masks; `nearest` loses classes, which it then has to find
    present = presence(labels, num_classes) if options.mask_downsample == "nearest" else masks.any(2)
    image, object_part = present.nonzero(as_tuple=True)
    weights = masks[image, object_part].to(dtype)

    to_object = vocabulary.num_parts + table(vocabulary, "object_of", device=labels.device)[object_part]
    to_part = table(vocabulary, "part_of", device=labels.device)[object_part]
    tiles = _pack_rows(weights, image=image, prompts=(to_object, to_part), device=layers[0].query.device)
    weights = send(weights, layers[0].query.device)
    total = torch.zeros_like(weights)
    for layer in layers:
        for prompt in tiles.prompts:
            total = total + _sum_rows(layer, prompt=prompt, tiles=tiles, count=len(image), dtype=dtype)
    if options.normalise_by == "mask":
        weight_sum = weights.sum(1, keepdim=True)
        # A mask that vanished on the grid has no rows: its map stays 0.
        total = total / torch.where(weight_sum > 0, weight_sum, 1)
    else:
        total = total / weights.shape[1]
    maps = total * ((0.5 if options.halve_sum else 1.0) / len(layers))
    return AttentionMaps(present, image, object_part, weights, maps.view(-1, *grid))


def _layers(
    attention: Mapping[int, DecoderAttention], *, vocabulary: Vocabulary, options: MaskAttention
) -> list[DecoderAttention]:
    missing = [layer for layer in options.layers if layer not in attention]
    if missing:
        raise ValueError(
            f"the model gave attention of decoder layers {sorted(attention)}, not of {missing}; a model without "
            "such layers takes criterion=clipseg, another layer is maps.layers in the criterion"
        )
    layers = [attention[layer] for layer in options.layers]
    expected = vocabulary.num_parts + vocabulary.num_objects + 1
    if layers[0].query.shape[1] != expected:
        raise ValueError(
            f"attention of {layers[0].query.shape[1]} prompts, but attention control needs one per part and object and "
            f"one for background ({expected}): a model without part and object prompts takes criterion=clipseg"
        )
    return layers


@dataclass(frozen=True)
class _Tiles:
    """Rows of all present classes in tiles: which class each tile belongs to, with its image and prompts, its cells and
    their weights.
    """

    pair: Int[Tensor, " tiles"]
    image: Int[Tensor, " tiles"]
    prompts: tuple[Int[Tensor, " tiles"], ...]
    cell: Int[Tensor, "tiles rows"]
    weight: Float[Tensor, "tiles rows"]


def _pack_rows(
    weights: Float[Tensor, "N T"],
    *,
    image: Int[Tensor, " N"],
    prompts: tuple[Int[Tensor, " N"], ...],
    device: torch.device,
) -> _Tiles:
    """The rows of weight above 0, made where `weights` are and sent to `device`."""
    pair, cell = weights.nonzero(as_tuple=True)
    per_pair = (weights > 0).sum(1)
    tiles_per_pair = (per_pair + _TILE - 1) // _TILE
    first_row = per_pair.cumsum(0) - per_pair
    first_tile = tiles_per_pair.cumsum(0) - tiles_per_pair
    rank = torch.arange(len(pair), device=weights.device) - first_row[pair]
    slot = (first_tile[pair] * _TILE) + rank
    tile_pair = torch.repeat_interleave(tiles_per_pair)
    cells = torch.zeros(len(tile_pair) * _TILE, dtype=torch.long, device=weights.device)
    values = torch.zeros(len(tile_pair) * _TILE, dtype=weights.dtype, device=weights.device)
    cells[slot] = cell
    values[slot] = weights[pair, cell]
    return _Tiles(
        send(tile_pair, device),
        send(image[tile_pair], device),
        tuple(send(prompt[tile_pair], device) for prompt in prompts),
        send(cells.view(-1, _TILE), device),
        send(values.view(-1, _TILE), device),
    )


def _sum_rows(
    layer: DecoderAttention, *, prompt: Int[Tensor, " tiles"], tiles: _Tiles, count: int, dtype: torch.dtype
) -> Float[Tensor, "N T"]:
    """sum_i w_i softmax(q_i k^T scale), mean over heads; CLS takes part in the softmax and is dropped afterwards."""
    heads = layer.query.shape[2]
    query = layer.query[tiles.image[:, None], prompt[:, None], :, 1 + tiles.cell]
    query = query.transpose(1, 2).to(dtype) * layer.scale
    key = layer.key[tiles.image, prompt].to(dtype)
    attention = torch.matmul(query, key.transpose(-1, -2)).softmax(-1)
    weight = (tiles.weight / heads).repeat(1, heads)[:, None]
    per_tile = torch.bmm(weight, attention.flatten(1, 2))[:, 0, 1:]
    return per_tile.new_zeros(count, per_tile.shape[1]).index_add(0, tiles.pair, per_tile)


def smooth(maps: Float[Tensor, "N rows columns"], sigma: float) -> Float[Tensor, "N rows columns"]:
    """3x3 Gaussian of standard deviation `sigma` (cells), reflected at the border."""
    offset = torch.arange(-1, 2, dtype=maps.dtype, device=maps.device)
    line = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = line[:, None] * line
    padded = F.pad(maps[:, None], (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0]


def min_max(maps: Float[Tensor, "N rows columns"]) -> Float[Tensor, "N rows columns"]:
    """Each map stretched to 0..1, with 1e-9 in the denominator."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-9)
