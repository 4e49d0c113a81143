"""Processes: who am I, sums and objects across ranks. Everything works without a process group, as one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from partseg.utils.whereabouts import Whereabouts

P = ParamSpec("P")
R = TypeVar("R")

TIMEOUT = timedelta(minutes=30)
"""Longer than the slowest thing one rank does alone (writing a checkpoint to a slow disk)."""

_whereabouts: Whereabouts | None = None


def init_from_env(device: torch.device | str = "cpu") -> bool:
    """Join the process group that torchrun or `engine.launch` describes in the environment; True if there is one.

    One process (no WORLD_SIZE, or 1) needs no group. Backend: NCCL for CUDA devices, Gloo otherwise.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return dist.is_initialized()
    global _whereabouts
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, own_rank, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=own_rank,
        world_size=count,
        timeout=TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    patience = 0.9 * TIMEOUT.total_seconds()
    _whereabouts = Whereabouts(store, rank=own_rank, world_size=count, patience=patience)
    return True


def shutdown() -> None:
    """Leave the process group, if any."""
    _be_silent()
    if dist.is_initialized():
        dist.destroy_process_group()


def at(place: str) -> None:
    """Note where this process is, for those who wait for it."""
    if _whereabouts is not None:
        _whereabouts.at(place)


@contextmanager
def waits_explained() -> Iterator[None]:
    """RuntimeError of a wait in vain that names the ranks that did not come, and where they are."""
    try:
        yield
    except RuntimeError as error:
        if _whereabouts is None or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise RuntimeError(f"{_whereabouts.report()} ({str(error).strip().splitlines()[0]})") from error
    finally:
        _be_silent()


def _be_silent() -> None:
    global _whereabouts
    if _whereabouts is not None:
        _whereabouts.stop()
        _whereabouts = None


def rank() -> int:
    """Position of this process among all, 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Position of this process on its machine; the launcher's word for it, 0 without one."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of processes, 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Is this the process that writes files and talks?"""
    return rank() == 0


def reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of `tensor` over all processes, as a new tensor on the same device. Integers and float64 stay exact."""
    total = tensor.detach().clone()
    if world_size() == 1:
        return total
    wire = total.to(_wire_device())
    dist.all_reduce(wire)
    return wire.to(tensor.device)


def gather_objects(obj: Any) -> list[Any]:
    """The picklable `obj` of every process, in rank order, on every process."""
    if world_size() == 1:
        return [obj]
    objects: list[Any] = [None] * world_size()
    dist.all_gather_object(objects, obj)
    return objects


def broadcast_object(obj: Any) -> Any:
    """Rank 0's picklable `obj`, on every process."""
    if world_size() == 1:
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src=0, device=_wire_device())
    return box[0]


def from_main(function: Callable[[], R]) -> R:
    """What the function returns on rank 0, on every process; an error there is raised on all, so that none waits."""
    value: Any = None
    failure: Exception | None = None
    if is_main():
        try:
            value = function()
        except Exception as error:
            failure = error
    value, failure = broadcast_object((value, failure))
    if failure is not None:
        raise failure
    return value


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def _wire_device() -> torch.device:
    """NCCL moves CUDA tensors only, Gloo moves CPU tensors everywhere."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
