"""A network that says what it is in its own weights, so that detectron2's files of it are checkpoints of ours too.

Its checkpointer keeps the tensors of a state_dict and nothing else, whatever program trains; so the config and the
training vocabulary are one more tensor, under the name that torch gives to a module's extra state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from partseg.vocabulary.names import Vocabulary

KEY = "_extra_state"


def described(config: Mapping[str, Any], vocabulary: Vocabulary) -> UInt8[Tensor, " n"]:
    """Config and vocabulary as a tensor of JSON."""
    text = json.dumps({"config": config, "vocabulary": vocabulary.to_dict()})
    return torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)


def from_detectron2(state: Any) -> dict[str, Any] | None:
    """The entries of our checkpoint out of a file that detectron2 wrote of a described network; None for any other.

    ValueError where the description cannot be read. detectron2's iteration is the last step's number, ours their count.
    """
    weights = state.get("model") if isinstance(state, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    note = weights.get(KEY)
    if (
        not isinstance(note, Tensor)
        or note.dtype != torch.uint8
        or note.layout is not torch.strided
        or not note.numel()
    ):
        return None
    try:
        said = json.loads(note.numpy().tobytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"what it says about its network cannot be read ({type(error).__name__})") from error
    if not isinstance(said, dict) or not isinstance(state.get("iteration", -1), int):
        raise ValueError("what it says about its network is no description")
    own = {str(name).removeprefix("model."): tensor for name, tensor in weights.items() if name != KEY}
    return {**said, "iteration": state.get("iteration", -1) + 1, "model": own, "optimizer": {}}
