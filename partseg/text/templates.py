"""Prompt templates as data; `{}` is replaced by the class name. Used by models when they encode a vocabulary."""

from __future__ import annotations

TEMPLATES: dict[str, str] = {
    "name": "{}",
    "photo": "a photo of a {}",
    "clipseg": "a photo of a {}.",
    "part": "a photo of the {} of an object",
}
"""Named templates; a model's `template` argument is one of these names or a text with `{}` in it."""


def resolve_template(template: str) -> str:
    """The text of a named template, or `template` itself if it contains `{}` once.

    Raises ValueError for anything else.
    """
    text = TEMPLATES.get(template, template)
    if text.count("{}") != 1:
        raise ValueError(
            f"prompt template {template!r} is neither a name ({', '.join(sorted(TEMPLATES))}) nor a text that contains "
            "'{}' exactly once, for example 'a photo of a {}'"
        )
    return text
