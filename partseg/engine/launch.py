"""From one command to N processes, and from a signal to an exit code. Used by tools/train_net.py and tools/eval_net.py.

Three ways in: plain `python` (one process, or launch.num_gpus / launch.num_processes of them on this machine) and
`torchrun` (any number of machines), which then decides the number of processes.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from types import FrameType
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from partseg.engine.signals import REQUEUE_CODE, leave_on_sigterm
from partseg.utils import distributed
from partseg.utils.errors import one_line

R = TypeVar("R")


def launch(function: Callable[[DictConfig], R], config: DictConfig) -> R:
    """Run `function(config)` in every process and return rank 0's result.

    `function` lives at module level; it finds its process group ready and its device in `device_of(config)`.
    ChildProcessError that names rank and error as soon as one process fails; the others are stopped, none stays behind.
    ValueError for an environment or settings that contradict each other.
    """
    if _in_torchrun(config):
        return _work(function, config)
    count = num_processes(config.launch.num_gpus, config.launch.num_processes)
    if count == 1:
        return _work(function, config)
    settings: dict[str, Any] = {"signals_to_handle": "SIGQUIT"} if _can_choose_signals() else {}
    launcher = elastic_launch(
        LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id="partseg",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            **settings,
        ),
        _work_and_die_with_parent,
    )
    try:
        with _signals_forwarded():
            return launcher(function, config)[0]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode in (REQUEUE_CODE, -signal.SIGTERM):  # asked to stop before it had anything to save
            exit_for_requeue()
        message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
        raise ChildProcessError(f"rank {rank} failed, all processes were stopped: {one_line(message)}") from None


def exit_for_requeue() -> None:
    """Leave the program with the code that tells a scheduler to run the same command again."""
    sys.exit(REQUEUE_CODE)


def num_processes(num_gpus: int | None, num_cpu_processes: int) -> int:
    """Processes to start on this machine: one per GPU, or `num_cpu_processes` where no GPU is used.

    `num_gpus` None = one GPU if there is one. ValueError when more GPUs are asked for than there are.
    """
    present = torch.cuda.device_count()
    if num_gpus is not None and num_gpus > present:
        raise ValueError(
            f"launch.num_gpus={num_gpus}, but this machine has {present} usable GPU(s); "
            "launch.num_gpus=0 runs on the CPU, launch.num_gpus=null takes a GPU if there is one"
        )
    uses_gpu = bool(num_gpus) or (num_gpus is None and present > 0)
    if uses_gpu and num_cpu_processes != 1:
        raise ValueError(f"launch.num_processes={num_cpu_processes} is for the CPU; add launch.num_gpus=0")
    return (num_gpus or 1) if uses_gpu else num_cpu_processes


def device_of(config: DictConfig) -> torch.device:
    """Device of this process: its GPU, or the CPU when launch.num_gpus is 0 or there is no GPU."""
    if config.launch.num_gpus == 0 or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", distributed.local_rank())


def _in_torchrun(config: DictConfig) -> bool:
    """ValueError where the environment or the settings speak of other processes than there are."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        alone = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
        stale = [f"{name}={os.environ[name]}" for name, value in alone.items() if os.environ.get(name, value) != value]
        if stale:
            raise ValueError(
                f"the environment says {' '.join(stale)}, but torchrun did not start this process and others would be "
                f"waited for in vain: unset {' '.join(alone)}, or start with torchrun"
            )
        return False
    asked, started = config.launch.num_processes, int(os.environ["LOCAL_WORLD_SIZE"])
    if asked not in (1, started):
        raise ValueError(
            f"launch.num_processes={asked}, but torchrun started {started} on this machine and decides: leave it out"
        )
    return True


def _work(function: Callable[[DictConfig], R], config: DictConfig) -> R:
    where = device_of(config)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if where.type == "cpu" and local_world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world_size))
    with leave_on_sigterm(), distributed.waits_explained():
        distributed.init_from_env(where)
        result = function(config)
        distributed.shutdown()
        return result


def _work_and_die_with_parent(function: Callable[[DictConfig], R], config: DictConfig) -> R:
    if sys.platform == "linux":  # a launcher killed with SIGKILL cannot stop its processes; the kernel does
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    return _work(function, config)


def _can_choose_signals() -> bool:
    """Older torch always kills its workers 30 s after a signal; newer ones can leave SIGTERM and SIGINT to us."""
    return "signals_to_handle" in {field.name for field in fields(LaunchConfig)}


@contextmanager
def _signals_forwarded() -> Iterator[None]:
    """SIGTERM and SIGINT reach the workers as SIGTERM, and they take the time they need to finish the step and save."""

    def forward(_number: int, _frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGTERM)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
