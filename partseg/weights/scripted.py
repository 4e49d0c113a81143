"""Tensors of a TorchScript archive (OpenAI's CLIP files are such), read without running its code.

torch.jit.load runs the `__setstate__` of every class in the archive, which can write files. An archive is a zip:
`<name>/data.pkl` nests the modules' attributes, `<name>/data/` holds the storages, and the text in `<name>/code/` says
which attributes are parameters and buffers.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partseg.utils.archive import check_archive

MOST_MODULES, DEEPEST = 10_000, 50
"""A small pickle can hold a module in itself, without end."""

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def is_scripted(path: Path) -> bool:
    """Whether the file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def scripted_state(path: Path) -> dict[str, Tensor]:
    """The archive's `torch.jit.load(...).state_dict()` on the CPU; ValueError (or what pickle raises) if it has none.

    Modules that restore themselves by code of their own are refused: nothing else knows what their tensors mean.
    """
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("/data.pkl") for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise ValueError("it has no data.pkl, so it was written by a version of torch before 1.4, or is damaged")
        order = f"{roots[0]}/byteorder"
        if order in names and archive.read(order).decode() != sys.byteorder:
            raise ValueError(f"its numbers are stored in another byte order than this machine's ({sys.byteorder})")
        data = archive.read(f"{roots[0]}/data.pkl")
        # pickle makes room for as many places as an index names, and these are never more than the bytes
        if any("PUT" in code.name and (place or 0) > len(data) for code, place, _ in pickletools.genops(data)):
            raise ValueError("its data.pkl is damaged")
        return _walk(_Unpickler(data, archive=archive, root=roots[0]).load(), _tensor_names(archive, roots[0]))


class _Object:
    """An object of one of the archive's classes: its state as stored."""

    kind = ""
    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows tensors, storages and lists; the archive's own classes become `_Object`s, every other name is an error."""

    def __init__(self, data: bytes, *, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(data))
        self._archive, self._root = archive, root
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a name of the pickle stands for."""
        if module == "__torch__" or module.startswith("__torch__."):
            return type(name, (_Object,), {"kind": f"{module}.{name}"})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        # functions of this call alone: a pickle can set attributes of what it was given
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *stored: _view(*stored),
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _type: value,
        }
        for kind in ("int", "double", "bool", "tensor"):
            known["torch.jit._pickle", f"build_{kind}list"] = lambda values: values
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """The flat tensor over a storage, the same for all tensors that share it."""
        _, dtype, key, _, count = pid
        if (key, dtype) not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            flat = torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            self._storages[key, dtype] = flat
        return self._storages[key, dtype]


def _view(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    """Raises RuntimeError for places outside the storage, which `Tensor.set_` would enlarge."""
    return torch.as_strided(storage, size, stride, offset)


def _tensor_names(archive: zipfile.ZipFile, root: str) -> dict[str, list[str]]:
    """Module class -> its parameters and buffers, from the source text; other attributes are in no state dict."""
    names: dict[str, list[str]] = {}
    for entry in archive.namelist():
        if not (entry.startswith(f"{root}/code/") and entry.endswith(".py")):
            continue
        module = entry.removeprefix(f"{root}/code/").removesuffix(".py").replace("/", ".")
        kind = ""
        for line in archive.read(entry).decode().splitlines():
            if line[:1].strip():
                head = re.match(r"class (\w+)\(Module\):", line)
                kind = f"{module}.{head[1]}" if head else ""
                if kind:
                    names[kind] = []
            elif kind and (listed := re.match(r"\s+__(?:parameters|buffers)__ = \[(.*)\]", line)):
                names[kind] += re.findall(r'"([^"]+)"', listed[1])
            elif kind and re.match(r"\s+def __setstate__\(", line):
                raise ValueError(f"its class {kind} restores itself by code of its own, which is not run")
    return names


def _walk(module: object, tensor_names: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The tensors of a module and of the modules in it, by dotted name."""
    found: dict[str, Tensor] = {}
    waiting, count = [("", module)], 0
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, _Object) or module.kind not in tensor_names:
            continue
        if not isinstance(module.state, Mapping):
            raise ValueError(f"its module {prefix[:-1]!r} has no attributes; the archive is damaged")
        count += 1
        if count > MOST_MODULES or prefix.count(".") > DEEPEST:
            raise ValueError("a module in it holds itself")
        for name in tensor_names[module.kind]:
            if isinstance(module.state[name], Tensor):
                found[prefix + name] = module.state[name]
        waiting += [(f"{prefix}{name}.", each) for name, each in module.state.items()]
    return found
