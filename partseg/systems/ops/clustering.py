"""Clusters of an object's pixels by their features: k-means, and which clusters hang together.

Legend: n pixels of the object, K clusters, D channels, h w feature grid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import ConvexHull
from torch import Tensor


@torch.no_grad()
def kmeans(
    points: Float[Tensor, "n D"],
    start: Int[Tensor, " K"],
    refill: Callable[[], int],
    *,
    max_iterations: int = 20,
    tolerance: float = 1e-4,
) -> tuple[Int[Tensor, " n"], Float[Tensor, "K D"]]:
    """Cluster of every point and the centres, from the rows `start`.

    An empty cluster moves to the row that `refill` draws. Labels are those before the last move of the centres, and it
    ends when the squared sum of the moves falls below `tolerance`: the authors' library does both.
    """
    centres = points[start].clone()
    labels = start.new_zeros(len(points))
    clusters = torch.arange(len(start), device=points.device)
    for _ in range(max_iterations):
        labels = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        member = (labels[:, None] == clusters).to(points.dtype)
        sizes = member.sum(0)
        moved = member.T @ points / sizes.clamp(min=1)[:, None]
        for empty in (sizes == 0).nonzero().flatten().tolist():
            moved[empty] = points[refill()]
        shift = (moved - centres).norm(dim=1).sum()
        centres = moved
        if shift**2 < tolerance:
            break
    return labels, centres


def solidity(mask: Bool[np.ndarray, "h w"]) -> float:
    """Area over the area of the convex hull, in pixels; a pixel is the diamond around its centre, a mask is not empty.

    The pixels that scikit-image's convex_hull_image fills, counted by rows of the polygon instead of drawn.
    """
    rows = np.flatnonzero(mask.any(1))
    first, last = mask[rows].argmax(1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)
    ends = np.concatenate([np.stack([rows, first], 1), np.stack([rows, last], 1)])  # a hull needs no more of a row
    corners = np.array([[0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])
    planes = ConvexHull((ends[:, None] + corners).reshape(-1, 2)).equations  # a row + b column + c <= 0 inside
    y = np.arange(rows[0], rows[-1] + 1)[:, None]
    across = np.abs(planes[:, 1]) > 1e-12
    a, b, c = planes[across].T
    limit = -(a * y + c) / b
    right = np.where(b > 0, limit, np.inf).min(1)
    left = np.where(b < 0, limit, -np.inf).max(1)
    filled = np.floor(right + 1e-9) - np.ceil(left - 1e-9) + 1
    return float(mask.sum() / filled.clip(min=0).sum())


def on_grid(inside: Bool[Tensor, "B H W"], size: tuple[int, int]) -> Bool[Tensor, "B h w"]:
    """The object at feature size: the pixel under each cell's centre."""
    grid = torch.nn.functional.interpolate(inside[:, None].float(), size, mode="nearest-exact")
    return grid[:, 0] > 0
