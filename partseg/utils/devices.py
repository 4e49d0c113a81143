"""Tensors on their way to the device, and the arithmetic that is done there."""

from __future__ import annotations

import os
import resource
import sys
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`, without a wait of the host: it goes to a GPU through page-locked memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context of the precision; weights stay fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=DTYPES[precision] is not None)


def check_precision(precision: str, *, device: torch.device, key: str) -> None:
    """ValueError that names the config key for a precision that does not exist or that the GPU cannot compute in."""
    if precision not in DTYPES:
        raise ValueError(f"{key}={precision!r} is not one of {', '.join(map(repr, DTYPES))}")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"{key}=bf16: {torch.cuda.get_device_name(device)} has no bf16 arithmetic (it came with compute capability "
            f"8.0) and would emulate it, slower than fp32: use {key}=fp16 or fp32"
        )


def set_tf32(enabled: bool) -> None:
    """Allow (or forbid) TF32 in fp32 matrix products on NVIDIA GPUs; convolutions use it as torch has it: yes."""
    torch.backends.cuda.matmul.allow_tf32 = enabled


def set_kernels(*, deterministic: bool) -> None:
    """How kernels are chosen in training: the fastest that cuDNN measures, or those that give the same bits every time.

    torch warns of operators that have no such kernel.
    """
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts, at the first product


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
