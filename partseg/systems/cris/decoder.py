"""CRIS's decoder over word tokens and its projector, which turns the phrase into a convolution (paper section 3.3).

Legend: N (image, phrase) pairs, T cells of the fused map, w its width, L tokens of the phrase, D width of its feature.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from partseg.systems.cris.neck import block, doubled


def sine(positions: Float[Tensor, " n"], width: int) -> Float[Tensor, "n width"]:
    """sin and cos in turn of the positions, wavelengths from 2 pi to 20000 pi."""
    rates = torch.exp(torch.arange(0, width, 2, device=positions.device) * (-math.log(10000.0) / width))
    angles = positions[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def sine_grid(rows: int, columns: int, width: int, device: torch.device) -> Float[Tensor, "T w"]:
    """Position of every cell: the first half of the channels tells the column, the second the row."""
    x = sine(torch.arange(columns, device=device).float(), width // 2)
    y = sine(torch.arange(rows, device=device).float(), width // 2)
    return torch.cat([x.expand(rows, -1, -1), y[:, None].expand(-1, columns, -1)], dim=2).flatten(0, 1)


class Layer(nn.Module):
    """Pre-norm layer: cells look at each other, then at the words; what attention gives is normalised once more."""

    def __init__(self, width: int, *, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_self, self.norm_cross, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend_self = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.after_self = nn.LayerNorm(width)
        self.attend_words = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.after_words = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(width, hidden)
        self.norm_hidden = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(
        self,
        x: Float[Tensor, "N T w"],
        words: Float[Tensor, "N L w"],
        padding: Bool[Tensor, "N L"],
        *,
        cell_places: Float[Tensor, "T w"],
        word_places: Float[Tensor, "L w"],
    ) -> Float[Tensor, "N T w"]:
        """Cells after the layer; positions are added to queries and keys, never to values."""
        normed = self.norm_self(x)
        placed = normed + cell_places
        found, _ = self.attend_self(placed, placed, normed, need_weights=False)
        x = x + self.dropout(self.after_self(found))
        found, _ = self.attend_words(
            self.norm_cross(x) + cell_places,
            words + word_places,
            words,
            key_padding_mask=padding,
            need_weights=False,
        )
        x = x + self.dropout(self.after_words(found))
        hidden = self.norm_hidden(self.dropout(F.relu(self.fc1(self.norm_mlp(x)))))
        return x + self.dropout(self.fc2(hidden))


class Decoder(nn.Module):
    """Layers over the cells of a map, and a last norm."""

    def __init__(self, width: int, *, layers: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise ValueError(f"decoder width {width} must be divisible by 4 and by its {heads} heads")
        self.layers = nn.ModuleList(Layer(width, heads=heads, hidden=hidden, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, fused: Float[Tensor, "N w h w"], words: Float[Tensor, "N L w"], padding: Bool[Tensor, "N L"]
    ) -> Float[Tensor, "N w h w"]:
        """The map after all layers."""
        width, rows, columns = fused.shape[1:]
        places = {
            "cell_places": sine_grid(rows, columns, width, fused.device).to(fused.dtype),
            "word_places": sine(torch.arange(words.shape[1], device=words.device).float(), width).to(words.dtype),
        }
        x = fused.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, words, padding, **places)
        return self.norm(x).transpose(1, 2).unflatten(2, (rows, columns))


class Projector(nn.Module):
    """The map at four times its size, convolved with a 3 x 3 kernel and a bias that are made from the phrase."""

    KERNEL = 3

    def __init__(self, width: int, state_dim: int) -> None:
        super().__init__()
        self.image1 = block(width, width, 3)
        self.image2 = block(width, width // 2, 3)
        self.image3 = nn.Conv2d(width // 2, width // 2, 1)
        self.text = nn.Linear(state_dim, width // 2 * self.KERNEL**2 + 1)

    def forward(self, x: Float[Tensor, "N w h w"], state: Float[Tensor, "N D"]) -> Float[Tensor, "N H W"]:
        """Logits of each pair, by one convolution in as many groups as there are pairs."""
        x = self.image3(self.image2(doubled(self.image1(doubled(x)))))
        numbers = self.text(state)
        kernels = numbers[:, :-1].reshape(len(x), x.shape[1], self.KERNEL, self.KERNEL)
        found = F.conv2d(
            x.flatten(0, 1)[None], kernels, numbers[:, -1].contiguous(), padding=self.KERNEL // 2, groups=len(x)
        )
        return found[0]
