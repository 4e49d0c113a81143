"""What attention control sees, for people: the maps behind each part of a picture and the values of both terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import nn

from partseg.geometry import to_tensor
from partseg.labels import IGNORE_LABEL, resize_labels
from partseg.losses.criterion import Criterion, loss_of
from partseg.structures import Batch
from partseg.systems.part_clipseg.attention_maps import MaskAttention, masked_attention, smooth
from partseg.systems.part_clipseg.losses import Enhancement, Separation
from partseg.utils.heat import Scale, heat_picture
from partseg.utils.visualize import overlay
from partseg.vocabulary.names import Vocabulary


@dataclass(frozen=True, eq=False)
class LabelledPicture:
    """A picture and the label maps that say where its parts and objects are, at the picture's size."""

    name: str
    picture: Image.Image
    object_part: Int[np.ndarray, "h w"]
    object: Int[np.ndarray, "h w"]
    vocabulary: Vocabulary


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """Smoothed maps A_c of the parts of one picture, in label order; `peaks`: highest values inside the part."""

    labels: tuple[int, ...]
    maps: Float[np.ndarray, "N rows columns"]
    peaks: tuple[float, ...]
    separation: float
    enhancement: float


@torch.inference_mode()
def heatmaps(
    model: nn.Module, picture: LabelledPicture, *, layer: int | None = None, gamma: float = 0.3, sigma: float = 0.5
) -> Heatmaps:
    """Maps and term values of one picture under a network with part and object prompts; `layer` None is the last."""
    layer = len(model.decoder.layers) - 1 if layer is None else layer  # type: ignore[arg-type,union-attr]
    width, height = picture.picture.size
    geometry = model.input.geometry(height, width)  # type: ignore[union-attr,operator]
    object_part, objects = (torch.from_numpy(geometry.labels(m)) for m in (picture.object_part, picture.object))
    shown = to_tensor(geometry.image(picture.picture))
    batch = Batch(shown[None], object_part[None], objects[None], (picture.name,), picture.vocabulary)
    options = MaskAttention(layers=(layer,))
    return measure(model, batch.to(next(model.parameters()).device), options=options, gamma=gamma, sigma=sigma)


@torch.no_grad()
def measure(model: nn.Module, batch: Batch, *, options: MaskAttention, gamma: float, sigma: float) -> Heatmaps:
    """Maps and term values of a batch of one image with the masks of its labels."""
    terms = {
        "separation": Separation(maps=options, gamma=gamma, smoothing_sigma=sigma, surrogate="none"),
        "enhancement": Enhancement(maps=options, smoothing_sigma=sigma),
    }
    criterion = Criterion(terms={name: {"weight": 1.0, "term": term} for name, term in terms.items()})
    _, values, outputs = loss_of(model, criterion, batch)
    found = masked_attention(outputs.attention, batch.labels[0], vocabulary=batch.vocabulary, options=options)
    smoothed = smooth(found.maps, sigma)
    peaks = (smoothed.flatten(1) * (found.weights > 0)).amax(1)
    return Heatmaps(
        labels=tuple(found.object_part.tolist()),
        maps=smoothed.cpu().numpy(),
        peaks=tuple(peaks.tolist()),
        separation=values["separation"].item(),
        enhancement=values["enhancement"].item(),
    )


def summary(found: Sequence[Heatmaps]) -> str:
    """Mean term values over the pictures that have parts, in words."""
    values = [(one.separation, one.enhancement) for one in found if one.labels]
    if not values:
        return "no picture has parts"
    separation, enhancement = np.mean(values, axis=0)
    return f"separation {separation:.3f}, enhancement {enhancement:.3f}, mean of {len(values)} pictures with parts"


def cells(
    picture: LabelledPicture,
    columns: Sequence[tuple[str, Heatmaps]],
    *,
    scale: Scale,
    parts: Sequence[str] = (),
    side: int = 224,
) -> list[tuple[UInt8[np.ndarray, "h w 3"], str]]:
    """(image, caption) row by row: the mask of a part, then its map in each named column. `parts` keeps those names."""
    factor = side / max(picture.picture.size)
    width, height = (max(1, round(n * factor)) for n in picture.picture.size)
    image = np.asarray(picture.picture.resize((width, height)))
    labels = resize_labels(picture.object_part, (height, width))
    names = picture.vocabulary.object_parts
    found: list[tuple[np.ndarray, str]] = []
    for row, label in enumerate(columns[0][1].labels):
        if parts and picture.vocabulary.pairs[label][1] not in parts:
            continue
        found.append((overlay(image, np.where(labels == label, label, IGNORE_LABEL), names), names[label]))
        for title, column in columns:
            found.append((heat_picture(image, column.maps[row], scale=scale), f"{title}: {column.peaks[row]:.3f}"))
    return found
