"""From an exception to the one line that a user needs."""

from __future__ import annotations


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
