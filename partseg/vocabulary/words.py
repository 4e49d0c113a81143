"""Vocabularies as people write them: a mapping, a few lines of text, a YAML file, or the name of a shipped one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped, shipped_names

VocabularyLike = Vocabulary | Mapping[str, object] | str | Path

EXAMPLE = "dog: head, tail"


def as_vocabulary(words: VocabularyLike) -> Vocabulary:
    """The vocabulary of a mapping, a YAML file, a shipped name, or text such as "dog: head, tail" line by line.

    Parts are a list or a comma-separated string. Text may also be a YAML mapping. ValueError says which entry is wrong.
    """
    if isinstance(words, Vocabulary):
        return words
    if isinstance(words, str):
        file = Path(words.strip()).expanduser()
        if "\n" in words.strip() or file.suffix.lower() not in (".yaml", ".yml"):
            return vocabulary_of_text(words)
        words = file
    return read_vocabulary(words) if isinstance(words, Path) else _from_data(words, name="custom")


def vocabulary_of_text(text: str) -> Vocabulary:
    """As `as_vocabulary`, but text is never taken for a file name: safe for what strangers type."""
    name = text.strip()
    if name in shipped_names():
        return shipped(name)
    return _from_data(_parse(text, "the vocabulary"), name="custom")


def _from_data(words: object, *, name: str) -> Vocabulary:
    if not isinstance(words, Mapping):
        raise ValueError(
            f'the vocabulary must map objects to their parts, for example "{EXAMPLE}", or be one of '
            f"{', '.join(shipped_names())}; got {words!r:.80}"
        )
    return Vocabulary.from_mapping({_name(key): _parts(key, parts) for key, parts in words.items()}, name=name)


def read_vocabulary(path: Path) -> Vocabulary:
    """A YAML file in the full form of the shipped vocabularies, or a plain mapping."""
    if not path.is_file():
        raise FileNotFoundError(f"no vocabulary file {path}; shipped vocabularies are {', '.join(shipped_names())}")
    data = _parse(path.read_text(encoding="utf-8"), str(path))
    if isinstance(data, Mapping) and "object_parts" in data:
        return Vocabulary.from_yaml(path)
    return _from_data(data, name=path.stem)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice; plain YAML keeps the last one and drops the rest without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            line = node.start_mark.line + 1
            raise ValueError(
                f"{twice} {'is' if len(twice) == 1 else 'are'} listed twice (from line {line}); name it once"
            )
        return super().construct_mapping(node, deep=deep)


def _parse(text: str, what: str) -> object:
    if not text.strip():
        raise ValueError(f'{what} is empty; write one object per line with its parts, for example "{EXAMPLE}"')
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}" if mark is not None else ""
        raise ValueError(
            f'{what} cannot be read{where}; write one object per line with its parts, for example "{EXAMPLE}"'
        ) from error


def _name(key: object) -> str:
    """Object name; YAML reads 7 as a number and `on` as a truth value, which nobody means in a list of objects."""
    if isinstance(key, bool) or not isinstance(key, str | int | float):
        raise ValueError(f"object name {key!r} is not text; put it in quotes")
    return str(key).strip()


def _parts(key: object, parts: object) -> list[str]:
    if isinstance(parts, str):
        parts = [word.strip() for word in parts.split(",") if word.strip()]
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError(f'{key!r} has no parts; write at least one after the colon, for example "{EXAMPLE}"')
    return [part if isinstance(part, str) else _name(part) for part in parts]
