"""Phrases: free words, each naming one mask; and phrases made from a vocabulary by templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    """What to find, in words: "the dog's tail". Position is the phrase's id; phrases may repeat."""

    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.texts, str):
            raise ValueError(f"phrases must be a list of texts, got the text {self.texts!r:.80}")
        object.__setattr__(self, "texts", tuple(" ".join(str(text).split()) for text in self.texts))
        if not self.texts:
            raise ValueError('there are no phrases; give at least one, for example ["dog ear", "front wheel"]')
        blank = [i for i, text in enumerate(self.texts) if not text]
        if blank:
            raise ValueError(f"phrases number {blank} are empty; every phrase needs words")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def key(self) -> str:
        """Changes when any phrase or their order does."""
        return "\n".join(self.texts)

    @classmethod
    def of(cls, texts: Sequence[str] | str) -> Phrases:
        """From a list, or from one phrase."""
        return cls((texts,) if isinstance(texts, str) else tuple(texts))
