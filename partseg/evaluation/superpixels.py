"""Cuts without a network (OPS, table 5): scikit-image's superpixels inside an object's mask, without names.

scikit-image is imported in the methods. The paper does not say its parameters: `GRID` is what is tried and published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8

from partseg.prediction import Segments


class Superpixels(Protocol):
    """A way to cut a picture."""

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
        """A number per region; what lies outside the mask has any."""
        ...


@dataclass(frozen=True)
class Slic:
    """k-means of colour and place."""

    num_segments: int = 25
    compactness: float = 10.0

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
        """Regions inside the mask."""
        count = min(self.num_segments, int(mask.sum()))
        segmentation = _skimage().segmentation
        return segmentation.slic(image, n_segments=count, compactness=self.compactness, mask=mask, start_label=1)


@dataclass(frozen=True)
class NormalisedCut:
    """Superpixels of `Slic`, merged by normalised cuts of their graph of mean colours."""

    num_segments: int = 100
    compactness: float = 10.0
    threshold: float = 1e-3

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
        """Regions inside the mask."""
        labels = Slic(self.num_segments, self.compactness)(image, mask)
        if len(np.unique(labels[mask])) < 2:
            return labels
        graph = _skimage().graph
        rag = graph.rag_mean_color(image, labels, mode="similarity")
        if 0 in rag:  # outside
            rag.remove_node(0)
        return graph.cut_normalized(labels, rag, thresh=self.threshold, rng=0)


@dataclass(frozen=True)
class Felzenszwalb:
    """Regions merged where their difference is small beside what is inside them."""

    scale: float = 300.0
    sigma: float = 0.8
    min_size: int = 20

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
        """Regions of the whole picture."""
        return _skimage().segmentation.felzenszwalb(image, self.scale, self.sigma, self.min_size)


GRID: Sequence[Superpixels] = (
    *(Slic(count) for count in (10, 25, 50, 100)),
    *(NormalisedCut(count) for count in (10, 25, 50, 100)),
    *(Felzenszwalb(scale) for scale in (100.0, 300.0, 1000.0)),
)


def title(method: Superpixels) -> str:
    """A folder name: the method and what varies in the grid."""
    name, value = next(iter(asdict(method).items()))  # type: ignore[call-overload]
    return f"{type(method).__name__.lower()}_{name}_{value:g}"


def cut(method: Superpixels, image: UInt8[np.ndarray, "h w 3"], masks: Sequence[Bool[np.ndarray, "h w"]]) -> Segments:
    """The regions inside each object's mask; a region's score is its share of the object."""
    found, scores = [], []
    for mask in masks:
        regions = method(image, mask)
        for number in np.unique(regions[mask]).tolist():
            found.append(mask & (regions == number))
            scores.append(found[-1].sum() / mask.sum())
    stacked = np.stack(found) if found else np.zeros((0, *image.shape[:2]), bool)
    return Segments.from_masks(torch.from_numpy(stacked), scores=np.array(scores))


def _skimage() -> Any:
    """The package with its graphs; ImportError that names the extra."""
    try:
        import skimage.graph
        import skimage.segmentation
    except ImportError as error:
        raise ImportError("superpixels are scikit-image's: pip install scikit-image") from error
    return skimage
