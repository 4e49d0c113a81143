"""key=value arguments of tools that need no Hydra configuration: a frozen dataclass is the schema."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

OptionsT = TypeVar("OptionsT")

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse(options: type[OptionsT], arguments: Sequence[str]) -> OptionsT:
    """The dataclass filled from `key=value` arguments; a tuple field takes its key several times.

    ValueError names unknown keys with the nearest known ones, malformed values, and required keys that are missing.
    """
    fields = {field.name: field for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    types = get_type_hints(options)
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"argument {argument!r} is not key=value; keys are {', '.join(fields)}")
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no argument {key!r}{hint} (keys are {', '.join(fields)})")
        if types[key] == tuple[str, ...]:
            values[key] = (*values.get(key, ()), text)
        else:
            values[key] = _convert(key, text, types[key])
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise ValueError(f"missing arguments: {', '.join(f'{name}=...' for name in missing)}")
    return options(**values)


def run(main: Callable[[OptionsT], int], options: type[OptionsT], usage: str | None) -> int:
    """Entry of a tool: parse the command line, call `main`, show user errors as one line; returns the exit code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print((usage or "").strip())  # noqa: T201  the help text is the tool's output
        return 0 if arguments else 2
    if isinstance(sys.stdout, TextIOWrapper):  # a file name or class may have characters that the terminal lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return main(parse(options, arguments))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2


def _convert(key: str, text: str, kind: Any) -> Any:
    """`text` as `kind`, one of str, int, float, bool, Path, or one of them | None ("null")."""
    choices = [choice for choice in get_args(kind) if choice is not type(None)] or [kind]
    if type(None) in get_args(kind) and text.lower() in ("", "null", "none"):
        return None
    kind = choices[0]
    if kind is bool:
        if text.lower() not in _TRUTH:
            raise ValueError(f"{key}={text} must be true or false")
        return _TRUTH[text.lower()]
    if kind is Path:
        return Path(text).expanduser()
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{key}={text} must be {what}") from None
