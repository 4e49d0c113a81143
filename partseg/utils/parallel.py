"""One function over many items: in several processes, with a progress bar, or ahead of their use in threads."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from itertools import islice
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_WAITING_PER_PROCESS = 8


def default_processes() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT], *, processes: int, title: str
) -> Iterator[tuple[ItemT, ResultT | Exception]]:
    """Yield (item, result or the exception it raised) for each item, in the order they finish.

    `work` must be a module-level function. One process means this one: simple to debug, and results come in order.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=len(items))
        results = _serial(work, items) if processes == 1 else _pooled(work, items, processes)
        for pair in results:
            progress.advance(task)
            yield pair


def _serial(work: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterator[tuple[ItemT, ResultT | Exception]]:
    for item in items:
        try:
            yield item, work(item)
        except Exception as error:  # the caller decides what one bad item means for the rest
            yield item, error


def _pooled(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT], processes: int
) -> Iterator[tuple[ItemT, ResultT | Exception]]:
    """A few items per process are in flight, so that a long list is neither pickled at once nor held in memory."""
    # a fork of a process that has imported torch carries its threads' locks; a fork server has none, and imports once
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([work.__module__])
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)
    try:
        waiting: dict[Future[ResultT], ItemT] = {}
        rest = iter(items)
        while True:
            while len(waiting) < processes * _WAITING_PER_PROCESS and (item := next(rest, None)) is not None:
                waiting[pool.submit(work, item)] = item
            if not waiting:
                break
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if isinstance(error, BrokenExecutor) or not isinstance(error, Exception | None):
                    raise error  # a worker died: no item is to blame
                yield waiting.pop(future), error if error is not None else future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """A killed parent must not leave workers behind that go on writing files."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_ahead(
    read: Callable[[ItemT], ResultT], items: Iterable[ItemT], *, ahead: int, threads: int
) -> Iterator[tuple[ItemT, Future[ResultT]]]:
    """Items with their reading under way, in order; `ahead` of them are read while one is used."""
    items = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="partseg-read") as pool:
        waiting = deque((item, pool.submit(read, item)) for item in islice(items, ahead))
        while waiting:
            done = waiting.popleft()
            waiting.extend((item, pool.submit(read, item)) for item in islice(items, 1))
            yield done
