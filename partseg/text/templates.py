"""How names become prompts: one text for all levels, one per level, or several whose features are averaged.

In a model's YAML, any of
    template: "a photo of a {}"
    template: {object_part: "{object}'s {part}", object: "a photo of a {}", part: "{}"}
    template: imagenet
`{}` is the name ("dog head" for object-parts), `{object}` and `{part}` are its words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from partseg.vocabulary.names import LEVELS, Level, Vocabulary

NAMED: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}",),
    "part": ("a photo of the {} of an object",),
    "imagenet": (),
}
"""Texts by name; `texts_of` reads those of `imagenet`."""

WORDS: Mapping[Level, tuple[str, ...]] = {
    "object_part": ("{}", "{object}", "{part}"),
    "object": ("{}", "{object}"),
    "part": ("{}", "{part}"),
}
"""What a template of a level may speak of."""

TemplateLike = str | Sequence[str] | Mapping[str, str | Sequence[str]]


class Templates:
    """The texts of every level; ValueError that names the level for one without a name in it."""

    def __init__(self, given: TemplateLike) -> None:
        by_level = given if isinstance(given, Mapping) else dict.fromkeys(LEVELS, given)
        unknown = sorted(set(by_level) - set(LEVELS))
        if unknown:
            raise ValueError(f"template has levels {unknown}; there are {', '.join(LEVELS)}")
        self._texts: dict[Level, tuple[str, ...]] = {
            level: _checked(by_level.get(level, "{}"), level) for level in LEVELS
        }

    def prompts(self, vocabulary: Vocabulary, level: Level) -> list[tuple[str, ...]]:
        """The prompts of each class, as many as there are texts."""
        return [tuple(_filled(text, *words) for text in self._texts[level]) for words in vocabulary.words(level)]

    def of_part(self, owner: str, part: str) -> tuple[str, ...]:
        """The prompts of a part of an object, whatever vocabulary they are of."""
        return tuple(_filled(text, f"{owner} {part}", owner, part) for text in self._texts["object_part"])

    def of_name(self, name: str, level: Level = "object_part") -> tuple[str, ...]:
        """The prompts of a phrase, as if it were a name."""
        return tuple(_filled(text, name, name, name) for text in self._texts[level])

    def encode(
        self, encode: Callable[[Sequence[str]], Tensor], prompts: Sequence[tuple[str, ...]]
    ) -> Float[Tensor, "N D"]:
        """`encode` of every class's prompts, averaged over the texts."""
        features = encode([prompt for each in prompts for prompt in each])
        several = len(prompts[0])
        return features if several == 1 else features.unflatten(0, (len(prompts), several)).mean(1)


def texts_of(template: str) -> tuple[str, ...]:
    """The texts of a name of NAMED, or the text itself; `imagenet` are the 80 of CLIP's zero-shot classifier.

    Radford et al., ICML 2021, section 3.1.4. Data sets are read without open_clip, whose import takes seconds.
    """
    if template != "imagenet":
        return NAMED.get(template, (template,))
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(make("{}") for make in OPENAI_IMAGENET_TEMPLATES)


def _checked(given: str | Sequence[str], level: Level) -> tuple[str, ...]:
    texts = texts_of(given) if isinstance(given, str) else tuple(given)
    for text in texts:
        words = [word for word in WORDS["object_part"] if isinstance(text, str) and word in text]
        if not words or text.count("{}") > 1 or not set(words) <= set(WORDS[level]):
            raise ValueError(
                f"template {text!r} of level {level} must hold {' or '.join(WORDS[level])} and nothing else in braces, "
                f"or be one of {', '.join(sorted(NAMED))}; each level may have its own: {{{level}: ...}}"
            )
    return texts


def _filled(text: str, name: str, owner: str, part: str) -> str:
    # one pass: a name may hold braces itself
    pieces = {"{}": name, "{object}": owner, "{part}": part}
    result, rest = "", text
    while rest:
        place, word = min(((rest.find(w), w) for w in pieces if w in rest), default=(-1, ""))
        if place < 0:
            return result + rest
        result += rest[:place] + pieces[word]
        rest = rest[place + len(word) :]
    return result
