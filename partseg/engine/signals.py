"""SIGTERM and SIGINT as a request to stop: after the step, or at once where there is nothing to save."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

REQUEUE_CODE = 85
"""Exit code after SIGTERM or SIGINT: the same command continues (Linux calls 85 ERESTART)."""


@contextmanager
def leave_on_sigterm() -> Iterator[None]:
    """SIGTERM outside the training loop ends the program with REQUEUE_CODE, by way of every `finally`."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        sys.exit(REQUEUE_CODE)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopRequest:
    """While active, the first SIGTERM or SIGINT makes it true; a second Ctrl-C, a second later or more, interrupts.

    Outside the main thread Python allows no handlers: it then stays false.
    """

    def __init__(self) -> None:
        self.asked_at: float | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return self.asked_at is not None

    def __float__(self) -> float:
        return float(bool(self))

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        # a terminal and a launcher may both deliver the same Ctrl-C: only one a second later is another
        if self.asked_at is not None and number == signal.SIGINT and time.monotonic() - self.asked_at > 1:
            raise KeyboardInterrupt
        if self.asked_at is None:
            self.asked_at = time.monotonic()
