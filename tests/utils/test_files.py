"""Files are whole or absent, and what a user has is never replaced."""

from pathlib import Path

import pytest

from partseg.utils.files import json_bytes, link_new, sha256_of, write_atomic, write_new


def test_write_new_never_replaces(tmp_path: Path):
    path = tmp_path / "folder" / "x.bin"
    write_new(path, b"one")
    write_new(path, b"one")
    with pytest.raises(FileExistsError, match="x.bin exists already with other content"):
        write_new(path, b"two")
    assert path.read_bytes() == b"one" and [p.name for p in path.parent.iterdir()] == ["x.bin"]


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path):
    for data in (b"one", b"two"):
        write_atomic(tmp_path / "x", data)
    assert (tmp_path / "x").read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1


def test_link_new(tmp_path: Path):
    target = tmp_path / "target"
    target.write_bytes(b"t")
    for _ in range(2):
        link_new(tmp_path / "a" / "link", target)
    assert (tmp_path / "a" / "link").read_bytes() == b"t"
    with pytest.raises(FileExistsError, match="is not a link to"):
        link_new(target, tmp_path / "a")


def test_hash_and_json(tmp_path: Path):
    write_atomic(tmp_path / "x", json_bytes({"é": 1}))
    assert sha256_of(tmp_path / "x") == sha256_of('{"é": 1}\n'.encode())
