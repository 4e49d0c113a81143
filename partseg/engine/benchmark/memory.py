"""Bytes: what autograd keeps for backward, and the peak of a fresh process above its imports and weights."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def saved_bytes(forward: Callable[[], Tensor], *, model: nn.Module) -> int:
    """Bytes that `forward` leaves behind for backward, every storage once, weights and buffers not counted.

    Counted are tensors that autograd saves and, because recomputation holds its inputs in closures, all other tensors
    that came into being and live as long as the loss. The saved ones are dropped at once, so that a batch can be
    counted that would not fit into memory; the loss that `forward` returns has no usable graph.
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    own |= {storage for storage, _ in _living()}
    seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def count(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in seen:
            # A weak reference frees the bytes but keeps the number from being given to another storage.
            seen[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    with torch.autograd.graph.saved_tensors_hooks(count, _refuse):
        loss = forward()
    gc.collect()
    held = dict(_living())
    del loss
    extra = sum(nbytes for storage, nbytes in held.items() if storage not in own and storage not in seen)
    return extra + sum(nbytes for _, nbytes in seen.values())


def _refuse(_: None) -> Tensor:
    raise RuntimeError("this graph was made to count bytes; its tensors are gone")


def _living() -> list[tuple[int, int]]:
    """(storage, bytes) of all tensors that Python can see."""
    # A class check by type(): isinstance would ask lazily loaded modules for their __class__ and import them.
    tensors = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter) and o.layout == torch.strided]
    return [(t.untyped_storage()._cdata, t.untyped_storage().nbytes()) for t in tensors]


def peak_above(work: Callable[[], object], *, device: torch.device) -> dict[str, int | None]:
    """Peak bytes while `work` runs: of resident memory above what it was before, and of the GPU in all.

    Only the first call in a process is meaningful: an allocator keeps what earlier work used.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return {"rss_above_start": None, "cuda_peak": torch.cuda.max_memory_allocated(device)}
    if not _CLEAR.exists():
        raise RuntimeError(f"peak resident memory is read from /proc, which {sys.platform} has not")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building the model freed must not hide what the work takes
    _CLEAR.write_text("5")  # the peak starts anew
    start = _status("VmRSS")
    work()
    return {"rss_above_start": _status("VmHWM") - start, "cuda_peak": None}


def _status(key: str) -> int:
    """A field of /proc/self/status in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
