"""Arithmetic and memory of a forward pass, counted on tensors without data: exact, and in seconds for any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from partseg.geometry import Size
from partseg.structures import Batch
from partseg.vocabulary.names import Vocabulary

DENSE = frozenset(("object_part", "object", "part"))


@dataclass(frozen=True)
class Cost:
    """Of one vocabulary; a multiply-add counts as two FLOPs. `text_*` once per step, `image_*` per image.

    `*_bytes` is what backward needs, in fp32, without weights, gradients, logits and optimiser state.
    """

    vocabulary: str
    num_classes: int
    text_flops: int
    image_flops: int
    text_bytes: int
    image_bytes: int


def forward_cost(build: Callable[[], nn.Module], vocabulary: Vocabulary, *, image_size: int | None = None) -> Cost:
    """Cost of one forward pass with gradients."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build()
        size: Size = (image_size, image_size) if image_size else model.input.size  # type: ignore[union-attr,assignment]
        images, labels = torch.zeros(1, 3, *size, dtype=torch.uint8), torch.zeros(1, *size, dtype=torch.int32)
        batch = Batch(images, labels, labels, ("",), vocabulary)
        saved: dict[int, Tensor] = {}
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in weights:
                saved[storage] = tensor  # holding it keeps its number from being used again
            return tensor

        def saved_bytes() -> int:
            return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with FlopCounterMode(display=False) as text_counter:
                prompts = model.encode_text(vocabulary)  # type: ignore[operator]
            text_bytes = saved_bytes()
            model.encode_text = lambda _: prompts  # type: ignore[assignment]
            with FlopCounterMode(display=False) as image_counter:
                model(batch, reads=DENSE)
        return Cost(
            vocabulary=vocabulary.name,
            num_classes=len(vocabulary),
            text_flops=text_counter.get_total_flops(),
            image_flops=image_counter.get_total_flops(),
            text_bytes=text_bytes,
            image_bytes=saved_bytes() - text_bytes,
        )


def made_up_vocabulary(num_classes: int) -> Vocabulary:
    """Object-parts in about the published proportions: ten per object, a third as many part names."""
    num_parts = max(10, num_classes // 3)
    pairs = [(f"object {k // 10}", f"part {k % num_parts}") for k in range(num_classes)]
    return Vocabulary(pairs=tuple(pairs), name=f"made-up {num_classes}")
