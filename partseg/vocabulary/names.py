"""Object, part and object-part names, which of them are unseen, and every index map between them.

Everything that needs to know which part belongs to which object asks here, by integer; nothing else splits or
compares names. A vocabulary is frozen and hashable by `key`; ids are positions.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from reprlib import repr as shown  # a few words of it, however long it is
from typing import Literal

import numpy as np

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL

Level = Literal["object_part", "object", "part"]
LEVELS: tuple[Level, ...] = ("object_part", "object", "part")


@dataclass(frozen=True)
class Vocabulary:
    """Names of one data set, split or user.

    `pairs` are (object, part) in object-part label order. `label_objects` are all object names in the order of the data
    set's object labels, including objects without parts (Pascal's chair); default: objects in order of first use.
    `prompt_names` replaces a word when prompts are made ("tier" -> "tire") and nowhere else.
    """

    pairs: tuple[tuple[str, str], ...]
    label_objects: tuple[str, ...] = ()
    unseen_objects: tuple[str, ...] = ()
    name: str = "custom"
    prompt_names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", tuple((str(o), str(p)) for o, p in self.pairs))
        object.__setattr__(self, "unseen_objects", tuple(self.unseen_objects))
        object.__setattr__(self, "prompt_names", dict(self.prompt_names))
        label_objects = tuple(self.label_objects) or tuple(dict.fromkeys(o for o, _ in self.pairs))
        object.__setattr__(self, "label_objects", label_objects)
        self._check()

    def _check(self) -> None:
        if not self.pairs and not self.label_objects:
            raise ValueError(f"vocabulary {self.name!r} is empty: give at least one object with one part")
        for kind, names in (("object-part", [f"{o}'s {p}" for o, p in self.pairs]), ("object", self.label_objects)):
            counts = Counter(map(_comparable, names))
            repeated = sorted({name for name in names if counts[_comparable(name)] > 1})
            if repeated:
                raise ValueError(
                    f"vocabulary {self.name!r} names {kind} classes twice: {shown(repeated)}; name each once "
                    "(CLIP reads capitals as small letters)"
                )
        blank = [pair for pair in self.pairs if not pair[0].strip() or not pair[1].strip()]
        if blank:
            raise ValueError(
                f"vocabulary {self.name!r} has empty names: {shown(blank)}; every object and part needs a name"
            )
        control = [n for n in self._all_names() if any(unicodedata.category(c) == "Cc" for c in n)]
        if control:
            raise ValueError(
                f"vocabulary {self.name!r} has names with control characters: {shown(control)}; remove them"
            )
        if max(len(self.pairs), len(self.label_objects)) > BACKGROUND_LABEL:
            raise ValueError(f"vocabulary {self.name!r} has more than {BACKGROUND_LABEL} classes, labels have 16 bits")
        known = set(self.label_objects)
        missing = sorted({o for o, _ in self.pairs} - known)
        if missing:
            raise ValueError(f"vocabulary {self.name!r}: objects {missing} have parts but are not in label_objects")
        unknown = sorted(set(self.unseen_objects) - known)
        if unknown:
            raise ValueError(
                f"vocabulary {self.name!r}: unseen_objects {unknown} are not objects of it; it has {sorted(known)}"
            )

    def _all_names(self) -> Iterable[str]:
        return dict.fromkeys((*self.label_objects, *(name for pair in self.pairs for name in pair)))

    # ---- names -----------------------------------------------------------------------------------------------------
    @cached_property
    def objects(self) -> tuple[str, ...]:
        """Objects that have parts, in label order; position = object id."""
        with_parts = {o for o, _ in self.pairs}
        return tuple(o for o in self.label_objects if o in with_parts)

    @cached_property
    def extra_objects(self) -> tuple[str, ...]:
        """Objects of the label files that have no parts; they get no id and no prompt, their pixels are background."""
        return tuple(o for o in self.label_objects if o not in set(self.objects))

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Part names without their object ("generalized parts"), in order of first use; position = part id."""
        return tuple(dict.fromkeys(p for _, p in self.pairs))

    @cached_property
    def object_parts(self) -> tuple[str, ...]:
        """Display names, "dog's head"; position = object-part id."""
        return tuple(f"{o}'s {p}" for o, p in self.pairs)

    @property
    def num_object_parts(self) -> int:
        """K."""
        return len(self.pairs)

    @property
    def num_objects(self) -> int:
        """O: objects with parts."""
        return len(self.objects)

    @property
    def num_parts(self) -> int:
        """P."""
        return len(self.parts)

    def __len__(self) -> int:
        return len(self.pairs)

    # ---- index maps --------------------------------------------------------------------------------------------------
    @cached_property
    def object_of(self) -> np.ndarray:
        """int64 [K]: object id of each object-part."""
        ids = {o: i for i, o in enumerate(self.objects)}
        return _frozen([ids[o] for o, _ in self.pairs])

    @cached_property
    def part_of(self) -> np.ndarray:
        """int64 [K]: part id of each object-part."""
        ids = {p: i for i, p in enumerate(self.parts)}
        return _frozen([ids[p] for _, p in self.pairs])

    @cached_property
    def seen(self) -> np.ndarray:
        """bool [K]: object-part is seen, that is, its object is."""
        return _frozen([o not in set(self.unseen_objects) for o, _ in self.pairs], np.bool_)

    def parts_of_object(self, object_id: int) -> np.ndarray:
        """Object-part ids of one object, ascending."""
        return np.flatnonzero(self.object_of == object_id)

    def object_id(self, name: str) -> int:
        """Id of an object by name; KeyError names the objects there are."""
        if name not in self.objects:
            raise KeyError(f"object {name!r} is not in vocabulary {self.name!r}; it has {list(self.objects)}")
        return self.objects.index(name)

    @cached_property
    def label_object_lut(self) -> np.ndarray:
        """int32 [65536]: id in the data set's object label files -> object id; part-less and none -> background.

        Ids that the label files may not contain map to -1, so that the reader can refuse them.
        """
        lut = np.full(IGNORE_LABEL + 1, -1, np.int32)
        lut[IGNORE_LABEL] = BACKGROUND_LABEL
        ids = {o: i for i, o in enumerate(self.objects)}
        for label, name in enumerate(self.label_objects):
            lut[label] = ids.get(name, BACKGROUND_LABEL)
        lut.flags.writeable = False
        return lut

    def lut_to(self, other: Vocabulary) -> np.ndarray:
        """int32 [65536]: object-part id here -> id in `other`, IGNORE_LABEL for pairs that `other` lacks."""
        ids = {pair: i for i, pair in enumerate(other.pairs)}
        return _lut([ids.get(pair, IGNORE_LABEL) for pair in self.pairs], {})

    def object_lut_to(self, other: Vocabulary) -> np.ndarray:
        """int32 [65536]: object id here -> id in `other`, or IGNORE_LABEL; background stays."""
        ids = {o: i for i, o in enumerate(other.objects)}
        return _lut([ids.get(o, IGNORE_LABEL) for o in self.objects], {BACKGROUND_LABEL: BACKGROUND_LABEL})

    @cached_property
    def object_lut(self) -> np.ndarray:
        """int32 [65536]: object-part id -> object id, IGNORE_LABEL stays."""
        return _lut(self.object_of, {})

    @cached_property
    def part_lut(self) -> np.ndarray:
        """int32 [65536]: object-part id -> part id, IGNORE_LABEL stays."""
        return _lut(self.part_of, {})

    @cached_property
    def mirror_lut(self) -> np.ndarray:
        """int32 [65536]: object-part id -> id after a horizontal flip, "left arm" <-> "right arm" where both exist."""
        ids = {pair: i for i, pair in enumerate(self.pairs)}
        return _lut([ids.get((o, mirrored(p)), i) for i, (o, p) in enumerate(self.pairs)], {})

    def __reduce__(self) -> tuple[object, ...]:
        # batches bring their vocabulary from the worker processes: names only, and always to the same object
        words = tuple(self.prompt_names.items())
        return _unpickled, (self.pairs, self.label_objects, self.unseen_objects, self.name, words)

    # ---- other vocabularies ------------------------------------------------------------------------------------------
    def subset(self, mask: Sequence[bool] | np.ndarray) -> Vocabulary:
        """The object-parts where `mask` [K] is true, renumbered; objects left without parts are dropped."""
        if len(mask) != len(self.pairs):
            raise ValueError(
                f"mask has {len(mask)} entries, vocabulary {self.name!r} has {len(self.pairs)} object-parts"
            )
        pairs = tuple(pair for pair, keep in zip(self.pairs, mask, strict=True) if keep)
        kept = {o for o, _ in pairs}
        return replace(
            self,
            pairs=pairs,
            label_objects=tuple(o for o in self.label_objects if o in kept),
            unseen_objects=tuple(o for o in self.unseen_objects if o in kept),
        )

    def seen_subset(self) -> Vocabulary:
        """The training vocabulary: seen object-parts and their objects only."""
        return self if self.seen.all() else replace(self.subset(self.seen), name=f"{self.name}/seen")

    def with_unseen(self, unseen_objects: Sequence[str] | None) -> Vocabulary:
        """Same classes with another list of unseen objects; None changes nothing."""
        return self if unseen_objects is None else replace(self, unseen_objects=tuple(unseen_objects))

    # ---- prompts -----------------------------------------------------------------------------------------------------
    def words(self, level: Level) -> tuple[tuple[str, str, str], ...]:
        """(name, object, part) of each class of `level` as prompts say them; "" for a word that the level has not.

        Object-parts are called "dog head": the possessive is for display only.
        """
        word: Callable[[str], str] = lambda name: self.prompt_names.get(name, name)  # noqa: E731
        if level == "object_part":
            return tuple((f"{word(o)} {word(p)}", word(o), word(p)) for o, p in self.pairs)
        if level == "object":
            return tuple((word(o), word(o), "") for o in self.objects)
        if level == "part":
            return tuple((word(p), "", word(p)) for p in self.parts)
        raise ValueError(f"level {level!r} is not one of {LEVELS}")

    def prompts(self, level: Level) -> tuple[str, ...]:
        """The name of each class of `level` as prompts say it; text/templates.py puts them into sentences."""
        return tuple(name for name, _, _ in self.words(level))

    # ---- identity and files ------------------------------------------------------------------------------------------
    @cached_property
    def key(self) -> str:
        """16 hex digits that change when any name, order, split or prompt word changes; `name` does not count."""
        data = {k: v for k, v in self.to_dict().items() if k != "name"}
        return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, object]:
        """Plain lists and strings, as stored in checkpoints; `from_dict` reads it back."""
        return {
            "name": self.name,
            "label_objects": list(self.label_objects),
            "unseen_objects": list(self.unseen_objects),
            "prompt_names": dict(self.prompt_names),
            "pairs": [list(pair) for pair in self.pairs],
        }

    def first_difference(self, own: Vocabulary) -> str:
        """The first class in which a file's vocabulary differs from `own`, as the end of a message."""
        for index, (theirs, ours) in enumerate(zip(self.object_parts, own.object_parts)):
            if theirs != ours:
                return f"; first difference: class {index} is {theirs!r} there and {ours!r} here"
        return "; they differ in object order, unseen objects or prompt names" if len(self) == len(own) else ""

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Vocabulary:
        """Inverse of `to_dict`."""
        return cls(
            pairs=tuple((o, p) for o, p in data["pairs"]),  # type: ignore[attr-defined]
            label_objects=tuple(data["label_objects"]),  # type: ignore[arg-type]
            unseen_objects=tuple(data["unseen_objects"]),  # type: ignore[arg-type]
            name=str(data["name"]),
            prompt_names=data["prompt_names"],  # type: ignore[arg-type]
        )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Sequence[str]], *, name: str = "custom") -> Vocabulary:
        """A free vocabulary from object -> parts, e.g. `{"dog": ["head", "tail"], "car": ["wheel"]}`; all seen."""
        if not mapping:
            raise ValueError('the vocabulary is empty; give objects with parts, for example {"dog": ["head", "tail"]}')
        pairs: list[tuple[str, str]] = []
        for obj, parts in mapping.items():
            if isinstance(parts, str) or not isinstance(parts, Sequence) or not parts:
                raise ValueError(f"vocabulary entry {obj!r} needs a list of at least one part name, got {shown(parts)}")
            bad = [n for n in (obj, *parts) if not isinstance(n, str)]
            if bad:
                raise ValueError(
                    f"vocabulary names must be text, got {shown(bad)} under {shown(obj)} (quote YAML words like 'on')"
                )
            pairs += [(obj.strip(), part.strip()) for part in parts]
        return cls(pairs=tuple(pairs), name=name)


def _comparable(name: str) -> str:
    """Spellings that CLIP or no reader can tell apart are one name: capitals, decomposed accents, repeated spaces."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def mirrored(name: str) -> str:
    swap = {"left": "right", "right": "left"}
    return " ".join(swap.get(word, word) for word in name.split(" "))


@lru_cache(maxsize=64)
def _unpickled(
    pairs: tuple[tuple[str, str], ...],
    label_objects: tuple[str, ...],
    unseen_objects: tuple[str, ...],
    name: str,
    prompt_names: tuple[tuple[str, str], ...],
) -> Vocabulary:
    return Vocabulary(pairs, label_objects, unseen_objects, name, dict(prompt_names))


def _frozen(values: Sequence, dtype: type = np.int64) -> np.ndarray:
    array: np.ndarray = np.asarray(values, dtype)
    array.flags.writeable = False
    return array


def _lut(values: Sequence | np.ndarray, special: Mapping[int, int]) -> np.ndarray:
    """A table over all 16-bit labels; what is not listed becomes IGNORE_LABEL."""
    lut = np.full(IGNORE_LABEL + 1, IGNORE_LABEL, np.int32)
    lut[: len(values)] = values
    for label, target in special.items():
        lut[label] = target
    lut.flags.writeable = False
    return lut
