"""Where guidance comes from: a convolutional network beside CLIP (v1), or CLIP's own early blocks (CVPR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import timm
import torch
from jaxtyping import Float
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from partseg.backbones.clip_vit import IMAGENET_MEAN, IMAGENET_STD
from partseg.systems.cat_seg.aggregator import Guidance
from partseg.systems.cat_seg.dense_clip import DenseFeatures

STRIDES = [4, 8, 16]


class ConvGuidance(nn.Module):
    """A convolutional network that timm knows by `name`, cut after stride 16, its batch statistics frozen.

    `pretrained` fetches timm's own weights; leave it out where a checkpoint holds them.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        name: str = "resnet101",
        *,
        pretrained: bool | None = None,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.net = freeze_batch_norm_2d(_features(name, pretrained=bool(pretrained)))
        if not pretrained:
            # ResNets start the last scale of a block at zero, where a frozen one would stay
            for module in self.net.modules():
                if isinstance(module, FrozenBatchNorm2d):
                    nn.init.ones_(module.weight)
        channels = self.net.feature_info.channels()  # type: ignore[operator,union-attr]
        self.appearance_dim, self.decoder_dims = channels[2], (channels[1], channels[0])
        self.register_buffer("image_mean", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(3, 1, 1), persistent=False)

    def input_size(self, grid: int) -> int:
        """Side of the square that gives `grid` cells."""
        return STRIDES[-1] * grid

    def forward(self, images: Float[Tensor, "B 3 16*h 16*w"], _grid: int) -> Guidance:
        """Features of images 0..1 at 16, 8 and 4 pixels per cell."""
        fine, middle, coarse = self.net((images - self.image_mean) / self.image_std)
        return Guidance(coarse, (middle, fine))


def _features(name: str, *, pretrained: bool) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0][:6]}*")[:5]
        raise KeyError(
            f"timm knows no network {name!r} (model.guidance.name); "
            f"{'near it are ' + ', '.join(near) if near else 'timm.list_models() tells which it knows'}"
        )
    try:
        net = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(1, 2, 3))
        strides = net.feature_info.reduction()  # type: ignore[operator,union-attr]
    except (RuntimeError, AttributeError, TypeError, AssertionError, IndexError) as error:
        raise ValueError(f"model.guidance.name={name!r} gives no feature maps in timm: {error}") from error
    if strides != STRIDES:
        raise ValueError(f"model.guidance.name={name!r} has features at strides {strides}, guidance needs {STRIDES}")
    return net


@dataclass(frozen=True)
class FromClip:
    """Guidance from CLIP's own blocks, brought to twice and four times the cells with these widths."""

    dims: tuple[int, int] = (256, 128)


class ClipGuidance(nn.Module):
    """The final cells as appearance; an early and a later block through transposed convolutions for the decoder."""

    def __init__(self, shape: FromClip, *, cell_dim: int, block_dim: int) -> None:
        super().__init__()
        self.appearance_dim, self.decoder_dims = cell_dim, tuple(shape.dims)
        self.up1 = nn.ConvTranspose2d(block_dim, shape.dims[0], 2, stride=2)
        self.up2 = nn.ConvTranspose2d(block_dim, shape.dims[1], 4, stride=4)

    def forward(self, features: DenseFeatures) -> Guidance:
        """The early block guides the first stage, the later one the second."""
        early, later = features.blocks
        return Guidance(features.cells, (self.up1(early), self.up2(later)))
