"""Prompts -> text features: tokens trimmed to the longest prompt, every distinct prompt encoded once.

A frozen tower's features are kept by `PromptCache` until one of its weights changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from jaxtyping import Float, Int
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from partseg.utils.devices import send

_log = logging.getLogger(__name__)


class TextTower(Protocol):
    """What `encode_prompts` needs of a backbone."""

    tokenizer: SimpleTokenizer

    @property
    def context_length(self) -> int:
        """Longest prompt in tokens, start and end included."""

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Token ids [N, L] -> features [N, D]."""


def tokenize(
    tokenizer: SimpleTokenizer, prompts: Sequence[str], *, context_length: int, cut: bool = False
) -> Int[Tensor, "N L"]:
    """Start, word and end ids of each prompt, zero-padded to the longest of them (not to the context length).

    The end token has the largest id, so its position is the argmax, as CLIP's pooling expects.
    Raises ValueError for an empty prompt and, unless it is to be `cut`, for one that does not fit into the context.
    A script that the tokenizer knows as bytes only is told to the log, once per prompt.
    """
    rows = []
    for prompt in prompts:
        words = tokenizer.encode(prompt)
        if not words:
            raise ValueError(f"prompt {prompt!r} has no words; every class name must contain text")
        if not prompt.isascii() and _spelled_in_bytes(tokenizer, prompt):
            _tell_bytes(prompt)
        if cut:
            words = words[: context_length - 2]
        if len(words) + 2 > context_length:
            raise ValueError(
                f"prompt {prompt!r} has {len(words) + 2} tokens, the text tower takes {context_length}: "
                "shorten the class name or the prompt template"
            )
        rows.append([tokenizer.sot_token_id, *words, tokenizer.eot_token_id])
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def _spelled_in_bytes(tokenizer: SimpleTokenizer, prompt: str) -> bool:
    """Whether a word takes more tokens than it has letters, so that some letters are left as single bytes."""
    return any(len(tokenizer.encode(word)) > len(word) for word in prompt.split() if not word.isascii())


@lru_cache(maxsize=1024)
def _tell_bytes(prompt: str) -> None:
    _log.warning("CLIP reads some of %r byte by byte: it was trained on English; results will mean little", prompt)


def encode_prompts(tower: TextTower, prompts: Sequence[str], *, device: torch.device) -> Float[Tensor, "N D"]:
    """Features of the prompts, in order; prompts that occur twice are encoded once.

    Trimming is exact: under the causal mask no token sees what follows it.
    """
    distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    tokens = tokenize(tower.tokenizer, list(distinct), context_length=tower.context_length)
    features = tower.encode_tokens(send(tokens, device))
    if len(distinct) == len(prompts):
        return features
    return features[send(torch.tensor([distinct[prompt] for prompt in prompts]), device)]


class PromptCache:
    """Features of single prompts under frozen weights; a weight that is written to or replaced empties it."""

    LIMIT = 1 << 16

    def __init__(self) -> None:
        self._features: dict[str, Tensor] = {}
        self._state: tuple[object, ...] = ()

    def features(
        self, prompts: Sequence[str], encode: Callable[[Sequence[str]], Tensor], *, weights: Sequence[Tensor]
    ) -> Float[Tensor, "N D"]:
        """`encode(prompts)`, run only for prompts that were not met since the `weights` or the precision changed."""
        kind = weights[0].device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        # an in-place change of a weight raises its version, a replaced or moved one has another storage
        state = (precision, *((w.untyped_storage()._cdata, w._version) for w in weights))
        if state != self._state or len(self._features) > self.LIMIT:
            self._state, self._features = state, {}
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._features))
        if new:
            # not inference tensors, which a later training step could not use
            with torch.inference_mode(False), torch.no_grad():
                self._features.update(zip(new, encode(new), strict=True))
        return torch.stack([self._features[prompt] for prompt in prompts])
