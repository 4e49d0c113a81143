"""The vocabularies that come with partseg: every YAML file in lists/ is one, by its name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from partseg.vocabulary.names import Vocabulary

FOLDER = Path(__file__).parent / "lists"


def shipped_names() -> tuple[str, ...]:
    """Names that `shipped` knows, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def shipped(name: str) -> Vocabulary:
    """The vocabulary called `name`; KeyError lists the names there are."""
    if name not in shipped_names():
        raise KeyError(f"no shipped vocabulary {name!r}; there are {', '.join(shipped_names())}")
    return Vocabulary.from_yaml(FOLDER / f"{name}.yaml")
