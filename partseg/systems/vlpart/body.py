"""Pictures to the feature pyramid P2..P6: timm's ResNet or Swin under torchvision's FPN.

Legend: B images, C channels; strides of P2..P6 are 4, 8, 16, 32, 64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from timm.models.resnet import Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

STRIDES = (4, 8, 16, 32, 64)


class ResNetBody(nn.Module):
    """C2..C5 of a bottleneck ResNet with frozen batch normalisation; `widths` are the bottlenecks' inner channels."""

    def __init__(self, *, depths: Sequence[int] = (3, 4, 6, 3), widths: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        # timm starts the last norm of a block at 0, which a frozen norm would never leave
        net = ResNet(Bottleneck, tuple(depths), channels=tuple(widths), num_classes=0, zero_init_last=False)  # type: ignore[arg-type]
        self.net = freeze_batch_norm_2d(net)
        self.channels = tuple(width * Bottleneck.expansion for width in widths)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Features at strides 4, 8, 16 and 32."""
        return self.net.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True)


class _PaddedBlock(SwinTransformerBlock):
    """A Swin block that pads to whole windows before it shifts, as Swin's authors do; timm shifts first and pads then.

    The features of pictures whose sides are no multiple of window x stride differ by up to 0.2 between the two.
    """

    def _attn(self, x: Float[Tensor, "B h w C"]) -> Tensor:
        rows, columns = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -columns % self.window_size[1], 0, -rows % self.window_size[0]))
        return super()._attn(x)[:, :rows, :columns]


class SwinBody(nn.Module):
    """A Swin Transformer with a norm on every output."""

    def __init__(
        self,
        *,
        width: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        heads: Sequence[int] = (4, 8, 16, 32),
        window: int = 7,
        drop_path: float = 0.3,
    ) -> None:
        super().__init__()
        self.net = SwinTransformer(
            embed_dim=width,
            depths=tuple(depths),
            num_heads=tuple(heads),
            window_size=window,
            drop_path_rate=drop_path,
            num_classes=0,
            always_partition=True,
            strict_img_size=False,
        )
        self.net.norm = nn.Identity()  # the outputs have norms of their own
        self.net.head = nn.Identity()  # type: ignore[assignment]
        for module in self.net.modules():
            if isinstance(module, SwinTransformerBlock):
                module.__class__ = _PaddedBlock
                module.dynamic_mask = True
        self.channels = tuple(width << level for level in range(len(depths)))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.channels)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Features at strides 4, 8, 16 and 32."""
        x, found = self.net.patch_embed(images), []
        for stage, norm in zip(self.net.layers, self.norms, strict=True):
            x = stage(x)
            found.append(norm(x).permute(0, 3, 1, 2))
        return found


class Pyramid(nn.Module):
    """A body and the feature pyramid on it."""

    def __init__(self, body: ResNetBody | SwinBody, *, channels: int = 256) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(body.channels), channels, extra_blocks=LastLevelMaxPool())
        self.channels = channels

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """P2..P6 of normalised pictures whose sides are multiples of 32."""
        return list(self.fpn({f"c{number}": level for number, level in enumerate(self.body(images), 2)}).values())
