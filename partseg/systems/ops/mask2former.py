"""Mask2Former of transformers on a ResNet whose first convolution may take a fourth channel, in four modules of ours.

transformers is imported here and in losses.py, inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


@dataclass(frozen=True)
class Mask2FormerShape:
    """Sizes of the network; the defaults are the paper's, Mask2Former's for COCO instances with a ResNet-50.

    `decoder_layers` are layers: there is one prediction more, by the learned queries alone. `frozen_norms` keeps the
    statistics of pretrained weights; without such weights the norms have to train. `classes` is 1 for parts without
    names; with the number of object-parts the network is the "class-aware" one of the paper's table 1.
    """

    stem: int = 64
    stages: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 9
    hidden: int = 2048
    queries: int = 100
    classes: int = 1
    frozen_norms: bool = True


def import_transformers() -> Any:
    """The package; ImportError that names the extra."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("this system's network is transformers' Mask2Former: pip install transformers") from error
    return transformers


def build(shape: Mask2FormerShape, *, channels: int) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Backbone, pixel decoder, query decoder and class head (parts, no part)."""
    transformers = import_transformers()
    stages = list(shape.stages)
    resnet = transformers.ResNetConfig(
        num_channels=channels,
        embedding_size=shape.stem,
        hidden_sizes=stages,
        depths=list(shape.depths),
        layer_type="bottleneck",
        downsample_in_bottleneck=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    log = transformers.utils.logging
    level = log.get_verbosity()
    log.set_verbosity_error()  # it advises against any backbone but Swin; the parity tests are on this one
    try:
        config = transformers.Mask2FormerConfig(
            backbone_config=resnet,
            feature_size=shape.width,
            mask_feature_size=shape.width,
            hidden_dim=shape.width,
            encoder_feedforward_dim=1024,
            encoder_layers=shape.encoder_layers,
            decoder_layers=shape.decoder_layers + 1,
            num_attention_heads=shape.heads,
            dim_feedforward=shape.hidden,
            num_queries=shape.queries,
            num_labels=shape.classes,
        )
        whole = transformers.Mask2FormerForUniversalSegmentation(config)
    finally:
        log.set_verbosity(level)
    backbone = whole.model.pixel_level_module.encoder
    _start_norms(backbone, frozen=shape.frozen_norms)
    return backbone, whole.model.pixel_level_module.decoder, whole.model.transformer_module, whole.class_predictor


def predictions(decoder: nn.Module, head: nn.Module, levels: list[Tensor], features: Tensor) -> tuple[Any, Any]:
    """Class logits [B, Q, classes + 1] and mask logits [B, Q, h, w] of the learned queries and after every layer."""
    found = decoder(multi_scale_features=levels, mask_features=features, output_hidden_states=True)
    classes = tuple(head(state.transpose(0, 1)) for state in found.intermediate_hidden_states)
    return classes, tuple(found.masks_queries_logits)


def _start_norms(module: nn.Module, *, frozen: bool) -> None:
    """Ones and zeros, which transformers does not start them with; frozen ones become buffers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            if frozen:
                setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
            else:
                child.reset_parameters()
        else:
            _start_norms(child, frozen=frozen)
