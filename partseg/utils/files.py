"""Files that are whole or absent: written under a temporary name, then renamed; user files are never replaced."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path, PureWindowsPath

TEMPORARY_SUFFIX = ".partseg-tmp"


def sha256_of(source: Path | bytes) -> str:
    """Hex digest of a file's or a byte string's content."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_bytes(value: object, *, indent: int | None = None) -> bytes:
    """The value as UTF-8 JSON with a final newline; equal values give equal bytes."""
    # bytes of a file name that are no UTF-8 are half characters in Python; JSON has an escape for each
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def inside(folder: Path, name: str) -> Path:
    """`folder / name` for a name that came out of a file; ValueError where it would lie outside the folder."""
    # as Windows reads it: a backslash and a drive lead away there, and names that use them are no loss elsewhere
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts or not path.parts:
        raise ValueError(f"the name {name!r:.80} leads out of {folder}; names of images and protocols must not")
    return folder / name


def write_atomic(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write or replace a file of ours; a reader never sees half of it. A `durable` one survives a power cut too."""
    temporary = _temporary(path)
    with temporary.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A rename survives a power cut only once its folder is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes) -> None:
    """Write a file; one that exists with other content stays as it is and raises FileExistsError."""
    if os.path.lexists(path):
        if path.is_file() and path.read_bytes() == data:
            _temporary(path).unlink(missing_ok=True)
            return
        raise FileExistsError(
            f"{path} exists already with other content and is left as it is; "
            f"choose another output folder or move it away"
        )
    write_atomic(path, data)


def link_new(path: Path, target: Path) -> None:
    """Symbolic link to `target`, made whole; FileExistsError when something else lies at `path`."""
    target = target.resolve()
    if os.path.lexists(path):
        if path.is_symlink() and path.resolve() == target:
            return
        raise FileExistsError(f"{path} exists already and is not a link to {target}; choose another output folder")
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def scratch_folder(name: str) -> Path:
    """A new temporary folder that is removed when this process ends, or by the next call where it was killed."""
    import fcntl  # not on Windows, where only this function is missed

    # a lock ends with its process, whatever ended that
    for old in Path(tempfile.gettempdir()).glob(f"{name}-*"):
        with suppress(OSError):
            fcntl.flock(os.open(old, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _temporary(path: Path) -> Path:
    """Always the same name for the same file, so that a run after a kill cleans up what the killed one left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")


def link_to(link: Path, target: Path) -> None:
    """Relative symbolic link, replaced in one move so that it always leads to a complete file."""
    temporary = link.with_name(f".{link.name}.part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)
    sync_folder(link.parent)
