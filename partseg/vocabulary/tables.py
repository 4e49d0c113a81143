"""A vocabulary's index maps as tensors, copied to each device once: a copy per step would wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from partseg.utils.devices import send
from partseg.vocabulary.names import Vocabulary

Table = Literal["object_of", "part_of", "object_lut", "part_lut"]


def table(vocabulary: Vocabulary, name: Table, *, device: torch.device) -> Tensor:
    """The map of that name on `device`; kept as long as the vocabulary lives, so do not write into it."""
    return on_device(vocabulary, name, device=device, make=lambda: np.array(getattr(vocabulary, name)))


def on_device(vocabulary: Vocabulary, name: str, *, device: torch.device, make: Callable[[], np.ndarray]) -> Tensor:
    """`make()` on `device`, made at the first request for this vocabulary, name and device."""
    tensors: dict[tuple[str, torch.device], Tensor] = vars(vocabulary).setdefault("_tensors", {})
    if (name, device) not in tensors:
        with torch.inference_mode(False):  # a training step may come after an evaluation, and could not use its tensors
            tensors[name, device] = send(torch.from_numpy(make()), device)
    return tensors[name, device]
