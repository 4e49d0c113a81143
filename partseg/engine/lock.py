"""One job per run directory: `lock.json` names the process that writes there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

LOG = logging.getLogger(__name__)
FILE_NAME = "lock.json"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """The directory belongs to this process inside the block. What a killed process of this host left is taken over.

    ValueError while another process has it, and for a process of another host, of which nothing is known here.
    """
    path = directory / FILE_NAME
    own = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    with _alone(path) as file:
        if text := file.read():
            _refuse_if_held(text, path=path)
            LOG.warning("%s was left by a process that is dead (%s): taken over", path, text.strip())
        file.truncate(0)
        file.write(f"{json.dumps(own)}\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _refuse_if_held(text: str, *, path: Path) -> None:
    try:
        held = json.loads(text)
    except json.JSONDecodeError:  # the disk was full when it was written, which ended that process
        return
    who = f"process {held['pid']} on {held['host']}"
    if held["host"] != socket.gethostname():
        raise ValueError(f"{path.parent} is in use by {who}: wait for it, or delete {path} if that job is dead")
    if held["pid"] != os.getpid() and _started(held["pid"]) == held["started"]:
        raise ValueError(f"{path.parent} is in use by {who}: wait for it, stop it, or choose another name=")


def _started(pid: int) -> str | None:
    """When a living process of this host was started: a later one may have the same number. None for a dead one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # somebody else's
        pass
    with suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    return "unknown"  # no /proc, as on macOS


@contextmanager
def _alone(path: Path) -> Iterator[TextIO]:
    """The file, at its start, while no other process is in here; of two that find a dead one's lock, one gets it."""
    while True:
        with path.open("a+", encoding="utf-8") as file:
            with suppress(OSError):  # some network file systems cannot: then only this moment is not covered
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                file.seek(0)
                yield file
                return
