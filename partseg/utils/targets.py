"""Which classes and functions a config may build: one rule for what a user types, a narrow one for what a file says.

A checkpoint and a results.json hold a config that was written by whoever made the file. Nothing is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

TORCH = re.compile(r"torch\.(nn|optim|optim\.lr_scheduler)\.[A-Z]\w*")
"""Layers, optimisers and schedules: classes that read no file and run no text."""

HYDRA_KEYS = frozenset({"_args_", "_partial_", "_recursive_", "_convert_"})
"""Entries beside `_target_` that change how Hydra calls it; our own files never hold one."""

LARGEST, DEEPEST = 100_000, 50
"""Values in a stored config and how deep they nest; ours have about 220, seven deep."""

_PATH = re.compile(r"[/\\]|^~|^[\w.+-]+:\S|\.(json|ya?ml|pth?|bin|pkl|safetensors|np[yz])$", re.IGNORECASE)


def plugin_names(value: object) -> tuple[str, ...]:
    """The modules that a user lists as plugins; ValueError for anything but a list of texts."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"plugins={value!r} is not a list of module names; write plugins=[my_package.my_module]")
    return tuple(value)


def check_typed(config: Any, *, plugins: Sequence[str], key: str = "") -> None:
    """ValueError for a `_target_` outside partseg, a few classes of torch, and the plugins with their submodules."""
    for name, node in targets(config, key):
        target = node["_target_"]
        if not isinstance(target, str) or not (
            within(target, ("partseg", *plugins)) or TORCH.fullmatch(target) is not None
        ):
            raise ValueError(
                f"config key {name!r}: _target_ {target!r} is not allowed: it may name partseg, a class of torch.nn, "
                f"torch.optim or torch.optim.lr_scheduler, or a module that you list, {_way_out(target)}"
            )


def check_origin(key: str, target: str, found: object, *, plugins: Sequence[str]) -> None:
    """ValueError for what the module of an allowed target only imports (`partseg.utils.files.os.remove`)."""
    origin = getattr(found, "__module__", None)
    if not within(str(origin), ("partseg", "torch.nn", "torch.optim", *plugins)):
        raise ValueError(
            f"config key {key!r}: {target!r} is defined in {origin!r}, not in partseg, torch.nn, torch.optim or a "
            f"module listed under plugins ({', '.join(plugins) or 'none'})"
        )


def check_stored(node: Any, *, group: str, shipped: Collection[str], plugins: Sequence[str]) -> None:
    """ValueError for anything in a file's config node that is not plain data around `shipped` targets or plugins'."""
    check_plain(node, what=group)
    for key, value in walk(node, group):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"config key {key!r}: {value!r:.80} would be looked up; a file may hold plain values only")
        if not isinstance(value, Mapping):
            continue
        changed = sorted(HYDRA_KEYS & set(value))
        if changed:
            raise ValueError(f"config key {key!r} has {changed}, which a file may not use; its targets take names only")
        target = value.get("_target_", "")
        if "_target_" in value and not (isinstance(target, str) and (target in shipped or within(target, plugins))):
            raise ValueError(
                f"config key {key!r}: a file may not name _target_ {target!r}, only what configs/{group}/ names; "
                f"if that module is yours, say so with {_way_out(target)}"
            )
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"config key {group!r} names nothing to build: the file is damaged, or from another program")


def check_plain(value: Any, *, what: str) -> None:
    """ValueError unless `value` is mappings, lists, text, numbers, truth values and None, and not too many of them.

    A pickle can nest a list in itself, or nest references so that a small file unfolds without end.
    """
    waiting, count = [(value, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        inner: list[Any] = list(node.values() if isinstance(node, Mapping) else node if _is_list(node) else ())
        names = list(node) if isinstance(node, Mapping) else [] if _is_list(node) else [node]
        strange = [type(name).__name__ for name in names if not isinstance(name, str | int | float | None)]
        if strange:
            raise ValueError(f"its {what!r} holds a {strange[0]}, and only text, numbers, lists and mappings are read")
        count += 1
        if count + len(waiting) + len(inner) > LARGEST or depth > DEEPEST:
            raise ValueError(f"its {what!r} holds more than {LARGEST:,} values, or they nest deeper than {DEEPEST}")
        waiting += [(each, depth + 1) for each in inner]


def check_no_files(node: Any, *, group: str, plugins: Sequence[str]) -> None:
    """ValueError for a text in a file's config node that could lead to another file or an address."""
    for key, value in walk(node, group):
        if isinstance(value, str) and not key.endswith("._target_") and _PATH.search(value) and value not in plugins:
            raise ValueError(
                f"config key {key!r}: {value!r:.80} leads to another file, and what this file says is read from "
                f"nowhere else; if you know it, say so with plugins=[{value!r:.80}]"
            )


def within(name: object, modules: Sequence[str]) -> bool:
    """Whether a dotted name lies in one of the modules or below it."""
    return isinstance(name, str) and any(name == module or name.startswith(f"{module}.") for module in modules)


def targets(node: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(key, node) of every node with a `_target_` in nested plain containers; `key` is that of the outermost."""
    return ((name, value) for name, value in walk(node, key) if isinstance(value, Mapping) and "_target_" in value)


def walk(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of a nested container and everything in it, outer ones first."""
    yield key, node
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from walk(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from walk(value, f"{key}[{index}]")


def _is_list(node: object) -> bool:
    return isinstance(node, list | tuple)


def _way_out(target: object) -> str:
    module = str(target).rpartition(".")[0]
    own = module.replace(".", "_").isidentifier() and not within(module, ("partseg", "torch"))
    return f"plugins=[{module if own else 'my_package.my_module'}]"
