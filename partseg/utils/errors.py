"""From an exception to the one line that a user needs."""

from __future__ import annotations

import os

DEBUG = "PARTSEG_DEBUG"
"""Environment variable: errors of commands come with their traceback. `partseg_debug=1` in a command sets it."""


class ForeignFileError(ValueError):
    """A whole file, but another program's."""


def one_line(error: BaseException | str) -> str:
    """The message alone: a data worker and another rank wrap their tracebacks around it."""
    if isinstance(error, KeyError) and error.args:
        error = str(error.args[0])  # str() of a KeyError has quotes around it
    text = str(error).strip()
    if "Traceback (most recent call last)" not in text:
        return text
    return text.splitlines()[-1].removeprefix(f"{type(error).__name__}: ")


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def without_debug(arguments: list[str]) -> list[str]:
    """The arguments but `partseg_debug=1`, which holds for this process and those that it starts."""
    for argument in arguments:
        if argument.startswith("partseg_debug="):
            os.environ[DEBUG] = argument.partition("=")[2]
    return [argument for argument in arguments if not argument.startswith("partseg_debug=")]
