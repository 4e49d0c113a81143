"""Vocabularies as people write them: a mapping, a few lines of text, a YAML file, or the name of a shipped one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from reprlib import repr as shown  # a few words of it, however long or deep it is

import yaml

from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import full_form, shipped, shipped_names

VocabularyLike = Vocabulary | Mapping[str, object] | str | Path

EXAMPLE = "dog: head, tail"

LONGEST_TEXT, LONGEST_FILE = 20_000, 1_000_000
"""Characters. A thousand object-parts are 20,000, which take up to 0.3 s to read; the demo reads at every keystroke."""

DEEPEST = 6
"""Levels of brackets and indents; the full form of a file has four."""

MOST_HINTS = 5

_log = logging.getLogger(__name__)


def as_vocabulary(words: VocabularyLike) -> Vocabulary:
    """The vocabulary of a mapping, a YAML file, a shipped name, or text such as "dog: head, tail" line by line.

    Parts are a list or a comma-separated string. Text may also be a YAML mapping. ValueError says which entry is wrong;
    what is likely not meant (see `hints`) is logged once.
    """
    if isinstance(words, Vocabulary):
        return words
    vocabulary = _read(words)
    for hint in hints(vocabulary):
        _tell(hint)
    return vocabulary


@lru_cache(maxsize=8)
def named(words: str) -> Vocabulary:
    """`as_vocabulary` of a shipped name or a file's path, read once in each process."""
    return as_vocabulary(words)


def text_of_vocabulary(vocabulary: Vocabulary) -> str:
    """A line per object, as `vocabulary_of_text` reads them."""
    parts: dict[str, list[str]] = {}
    for owner, part in vocabulary.pairs:
        parts.setdefault(owner, []).append(part)
    return "\n".join(f"{owner}: {', '.join(names)}" for owner, names in parts.items())


def vocabulary_of_text(text: str) -> Vocabulary:
    """As `as_vocabulary`, but text is never taken for a file name and nothing is logged: for what strangers type."""
    name = text.strip()
    if name in shipped_names():
        return shipped(name)
    return _from_data(_parse(text, "the vocabulary", longest=LONGEST_TEXT), name="custom")


def read_vocabulary(path: Path) -> Vocabulary:
    """A YAML file in the full form of the shipped vocabularies, or a plain mapping."""
    if not path.is_file():
        raise FileNotFoundError(f"no vocabulary file {path}; shipped vocabularies are {', '.join(shipped_names())}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8; save it as UTF-8") from error
    data = _parse(text, str(path), longest=LONGEST_FILE)
    if isinstance(data, Mapping) and "object_parts" in data:
        return full_form(data, path)
    return _from_data(data, name=path.stem)


def hints(vocabulary: Vocabulary) -> tuple[str, ...]:
    """What in the names is likely not meant, with what to write instead: a part that repeats its object, underscores.

    CLIP would read "dog dog's head", and traffic_light as it stands. Shipped vocabularies mean what they say.
    """
    if vocabulary.name in shipped_names():
        return ()
    found = []
    for owner, part in vocabulary.pairs:
        words, start = _plain(part), _plain(owner)
        short = next((words[len(s) :] for s in (f"{start}'s ", f"{start} ") if words.lower().startswith(s.lower())), "")
        if short:
            found.append(f"the part {part!r} of {owner!r} repeats its object, which is added anyway; write {short!r}")
        elif "_" in part:
            found.append(f"the part {part!r} goes to CLIP with its underscore; write {words!r}")
    found += [
        f"the object {name!r} goes to CLIP with its underscore; write {_plain(name)!r}"
        for name in vocabulary.objects
        if "_" in name
    ]
    more = [f"{len(found) - MOST_HINTS} more names are like these"] if len(found) > MOST_HINTS else []
    return (*found[:MOST_HINTS], *more)


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


@lru_cache(maxsize=1024)
def _tell(hint: str) -> None:
    _log.warning(hint)


def _read(words: Mapping[str, object] | str | Path) -> Vocabulary:
    if isinstance(words, str):
        name = words.strip()
        if "\n" in name or not name.lower().endswith((".yaml", ".yml")):
            return vocabulary_of_text(words)
        words = Path(name).expanduser()
    return read_vocabulary(words) if isinstance(words, Path) else _from_data(words, name="custom")


def _from_data(words: object, *, name: str) -> Vocabulary:
    if not isinstance(words, Mapping):
        names = f"; shipped vocabularies are {', '.join(shipped_names())}" if isinstance(words, str) else ""
        raise ValueError(
            f'the vocabulary must map objects to their parts, for example "{EXAMPLE}"; got {shown(words)}{names}'
        )
    entries = [(_name(key), _parts(key, parts)) for key, parts in words.items()]
    _refuse_twice(key for key, _ in entries)
    return Vocabulary.from_mapping(dict(entries), name=name)


def _refuse_twice(names: Iterable[str], where: str = "") -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        verb = "is" if len(twice) == 1 else "are"
        raise ValueError(f"{shown(twice)} {verb} listed twice{where}; name it once, with all its parts")


class _StrictLoader(yaml.BaseLoader):
    """Every scalar is the word that stands there. Refuses a key that is given twice, where plain YAML keeps the last.

    Anchors and aliases are refused as well: three hundred characters of them unfold to gigabytes.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if event.anchor is not None:
            raise ValueError(f"line {event.start_mark.line + 1} has an anchor or alias (& or *); write the words out")
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"line {event.start_mark.line + 1} has too many brackets or indents within each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [str(self.construct_object(key, deep=True)).strip() for key, _ in node.value]
        _refuse_twice(keys, f" (from line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep=deep)


def _parse(text: str, what: str, *, longest: int) -> object:
    if not text.strip():
        raise ValueError(f'{what} is empty; write one object per line with its parts, for example "{EXAMPLE}"')
    if len(text) > longest:
        raise ValueError(f"{what} has {len(text)} characters, allowed are {longest}; use fewer words")
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}" if mark is not None else ""
        raise ValueError(
            f'{what} cannot be read{where}; write one object per line with its parts, for example "{EXAMPLE}"'
        ) from error


def _name(key: object) -> str:
    """Name of an object or part; a truth value is what other YAML readers make of the word `on`."""
    if isinstance(key, bool) or not isinstance(key, str | int | float):
        raise ValueError(f"name {shown(key)} is not text; put it in quotes")
    return str(key).strip()


def _parts(key: object, parts: object) -> list[str]:
    if isinstance(parts, str):
        parts = [word.strip() for word in parts.split(",") if word.strip()]
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError(f'{shown(key)} has no parts; write at least one after the colon, for example "{EXAMPLE}"')
    return [_name(part) for part in parts]
