"""The vocabularies that come with partseg: every YAML file in lists/ is one, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import yaml

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
    path = FOLDER / f"{name}.yaml"
    return full_form(yaml.safe_load(path.read_text(encoding="utf-8")), path)


def full_form(data: Mapping[str, Any], path: Path) -> Vocabulary:
    """The vocabulary of a file that lists object_parts; ValueError that names `path` for what it may not hold."""
    known = {"name", "objects", "unseen_objects", "prompt_names", "object_parts"}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"{path} has unknown keys {unknown}; known keys are {sorted(known)}")
    for entry in data["object_parts"]:
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(n, str) for n in entry)):
            raise ValueError(f"{path}: object_parts must list [object, part] pairs of text, got {shown(entry)}")
    return Vocabulary(
        pairs=tuple((o, p) for o, p in data["object_parts"]),
        label_objects=tuple(data.get("objects", ())),
        unseen_objects=tuple(data.get("unseen_objects", ())),
        name=str(data.get("name", path.stem)),
        prompt_names=data.get("prompt_names") or {},
    )
