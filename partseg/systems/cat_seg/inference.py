"""How a photo is seen: squashed to the network's size, or in windows that overlap beside one view of all of it.

Legend: B images, K classes, H W pixels, S the network's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from partseg.geometry import InputSpec, Size


@dataclass(frozen=True)
class Inference:
    """What the authors do before and after the network; the defaults are what is right.

    `short_edge` (shorter, longest edge) resizes a photo before it is squashed. `windows` scores it at `canvas` pixels
    square in windows of `window` pixels every `stride`, and once as a whole; probabilities are averaged. `pad_to` fills
    the photo up to multiples with the mean colour before it is squashed, and logits are read as if it were not there.
    `probabilities` are resized and compared in place of logits.
    """

    short_edge: Size | None = None
    windows: bool = False
    canvas: int = 640
    window: int = 384
    stride: int = 256
    pad_to: int = 1
    probabilities: bool = False

    def __post_init__(self) -> None:
        if self.windows and (self.canvas < self.window or (self.canvas - self.window) % self.stride):
            raise ValueError(
                f"model.inference: windows of {self.window} pixels every {self.stride} do not cover a picture of "
                f"{self.canvas}; canvas must be window plus a multiple of stride"
            )

    def input(self, image_size: int) -> InputSpec:
        """The picture that the network is given."""
        if self.short_edge is not None:
            return InputSpec((self.short_edge[0], self.short_edge[1]), "short_edge")
        size = self.canvas if self.windows else image_size
        return InputSpec((size, size))


def squashed(
    images: Float[Tensor, "B 3 H W"], size: int, *, pad_to: int, fill: Float[Tensor, "3 1 1"]
) -> Float[Tensor, "B 3 S S"]:
    """Images filled up to multiples of `pad_to` at the bottom and the right, then squashed, bilinear, no antialias."""
    height, width = images.shape[-2:]
    below, beside = -height % pad_to, -width % pad_to
    if below or beside:
        # zero after normalisation is the mean colour before it
        images = F.pad(images - fill, (0, beside, 0, below)) + fill
    return resized(images, (size, size))


def resized(maps: Float[Tensor, "B C H W"], size: Size) -> Float[Tensor, "B C h w"]:
    """Bilinear, as the authors resize pictures and logits."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def windowed(
    image: Float[Tensor, "1 3 H W"], score: Callable[[Tensor], Float[Tensor, "1 K h w"]], options: Inference
) -> Float[Tensor, "1 K canvas canvas"]:
    """Probabilities: the mean over windows where they overlap, then the mean of that and of the whole view."""
    canvas, window = options.canvas, options.window
    whole = resized(score(resized(image, (window, window))), (window, window)).sigmoid()
    image = resized(image, (canvas, canvas))
    starts = range(0, canvas - window + 1, options.stride)
    total = whole.new_zeros((1, whole.shape[1], canvas, canvas))
    count = whole.new_zeros((canvas, canvas))
    for top in starts:
        for left in starts:
            rows, columns = slice(top, top + window), slice(left, left + window)
            total[..., rows, columns] += resized(score(image[..., rows, columns]), (window, window)).sigmoid()
            count[rows, columns] += 1
    return total.div_(count).add_(resized(whole, (canvas, canvas))).div_(2)
