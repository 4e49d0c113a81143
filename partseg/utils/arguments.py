"""Command lines of the tools that need no Hydra configuration, in the same style: key=value. A dataclass is the schema.

`--key value`, `--key=value` and, for truth values, `--key` are read as well; words without a key belong to the first
field. OmegaConf converts and checks the values.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from partseg.utils.errors import debugging, without_debug

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""

OptionsT = TypeVar("OptionsT")


def parse(options: type[OptionsT], arguments: Sequence[str]) -> OptionsT:
    """The dataclass filled from the arguments; a tuple field takes its key several times, or a list: [a, b].

    ValueError names unknown keys with the nearest known ones, malformed values, and required keys that are missing.
    """
    types = get_type_hints(options)
    several = {name for name, kind in types.items() if get_origin(kind) is tuple}
    config = OmegaConf.structured(options)
    OmegaConf.set_readonly(config, False)
    given: dict[str, list[str]] = {}
    for key, text in _pairs(arguments, types):
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no argument {key!r}{hint} (keys are {', '.join(types)})")
        given.setdefault(key, []).extend(_listed(text) if key in several else [text])
    for key, texts in given.items():
        value: Any = texts if key in several else texts[-1]
        if value in ("null", "none", "") and type(None) in get_args(types[key]):
            value = None
        try:
            config[key] = value
        except OmegaConfBaseException as error:
            raise ValueError(f"{key}={texts[-1]}: {str(error).splitlines()[0]}") from None
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"missing arguments: {', '.join(f'{name}=...' for name in missing)}")
    filled = OmegaConf.to_object(config)
    return options(**{name: _as_typed(getattr(filled, name), several=name in several) for name in types})


def run(main: Callable[[OptionsT], int], options: type[OptionsT], usage: str | None) -> int:
    """Entry of a tool: parse the command line, call `main`, show user errors as one line; returns the exit code."""
    arguments = without_debug(sys.argv[1:])
    needs = any(field.default is dataclasses.MISSING for field in dataclasses.fields(options))  # type: ignore[arg-type]
    asked = bool(arguments) and (arguments[0] == "help" or not {"-h", "--help"}.isdisjoint(arguments))
    if asked or (needs and not arguments):
        print((usage or "").strip())  # noqa: T201  the help text is the tool's output
        return 0 if asked else 2
    if isinstance(sys.stdout, TextIOWrapper):  # a file name or class may have characters that the terminal lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return main(parse(options, arguments))
    except (ValueError, KeyError, OSError, ImportError, MemoryError) as error:
        if debugging():
            raise
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is complete was kept", file=sys.stderr)  # noqa: T201
        return INTERRUPTED


def _pairs(arguments: Sequence[str], types: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, value) of every argument, in whichever of the three spellings."""
    pairs: list[tuple[str, str]] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            key = key.replace("-", "_")
            if not equals:
                value = "true" if types.get(key) is bool or not waiting else waiting.pop(0)
        elif not equals or (key not in types and Path(word).exists()):
            key, value = next(iter(types)), word
            if get_origin(types[key]) is not tuple and key in dict(pairs):
                raise ValueError(f"cannot place {word!r}: {key}= is given (a value with spaces needs quotes)")
        pairs.append((key, value))
    return pairs


def _listed(text: str) -> list[str]:
    """The entries of a list in brackets as YAML writes it; other text, or no such list, as it is."""
    if not (text.startswith("[") and text.endswith("]")):
        return [text]
    try:
        entries = yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError:
        return [text]
    return entries if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries) else [text]


def _as_typed(value: Any, *, several: bool) -> Any:
    if isinstance(value, Path):
        return value.expanduser()
    return tuple(value) if several else value
