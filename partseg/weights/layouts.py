"""How a family of checkpoint files names its tensors, and how ours come of them. Each system lists its own layouts."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

Rules = Sequence[tuple[str, tuple[str, ...]]]
"""(pattern of our name, templates of theirs) pairs; the first pattern that matches the whole name decides."""


@dataclass(frozen=True)
class Link:
    """Our tensor `ours` is `theirs` stacked along rows (q, k, v), transposed if asked.

    `fit` makes a tensor of another shape fit (a position table of another grid); None: it is refused. `block` (i, n)
    says that ours is instead the i-th of n equal blocks of rows of theirs.
    """

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False
    fit: Callable[[Tensor, torch.Size], Tensor | None] | None = None
    block: tuple[int, int] | None = None

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        """Our tensor out of their state."""
        parts = [state[name] for name in self.theirs]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.block is not None:
            tensor = tensor.chunk(self.block[1])[self.block[0]]
        return tensor.t() if self.transposed else tensor

    def write(self, tensor: Tensor, written: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors out of ours, each with its own memory; `written` holds the blocks that are there already."""
        tensor = tensor.detach().t() if self.transposed else tensor.detach()
        if self.block is not None:
            (name,), (place, count) = self.theirs, self.block
            whole = written[name] if name in written else tensor.new_zeros(count * len(tensor), *tensor.shape[1:])
            whole.chunk(count)[place].copy_(tensor)
            return {name: whole}
        parts = tensor.chunk(len(self.theirs)) if len(self.theirs) > 1 else (tensor,)
        return {name: part.clone(memory_format=torch.contiguous_format) for name, part in zip(self.theirs, parts)}


def _nothing_started(_model: nn.Module, _found: Collection[str]) -> tuple[str, ...]:
    return ()


def _nothing_more(_model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


@dataclass(frozen=True)
class WeightLayout:
    """One family of files. `marks` are tensors that only such files have: a name, or the beginning of one with a dot.

    `prefixes` stand before all names in some of these files and are removed. `unused` is a pattern of tensors that take
    part in no output. `holds` are beginnings of our names of which such a file must have some. `quick_gelu` is the
    activation of CLIP towers in such files where nothing in or beside the file tells it. `start` fills what the file
    lacks from what it has and returns the names (after loading); `complete` adds what public files hold beside our
    tensors (before writing).
    """

    name: str
    marks: tuple[str, ...]
    link: Callable[[str], Link | None]
    prefixes: tuple[str, ...] = ()
    unused: str = r"[^\s\S]"
    holds: tuple[str, ...] = ("backbone",)
    quick_gelu: bool | None = None
    start: Callable[[nn.Module, Collection[str]], tuple[str, ...]] = _nothing_started
    complete: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]] = _nothing_more

    def matches(self, names: Collection[str]) -> bool:
        """Does a file with these tensors belong to the family?"""
        return all(
            any(name.startswith(mark) for name in names) if mark.endswith(".") else mark in names for mark in self.marks
        )

    def links(self, names: Iterable[str]) -> list[Link]:
        """A link for each of our tensor names that has a counterpart."""
        return [link for name in names if (link := self.link(name)) is not None]


def rename(name: str, rules: Rules) -> tuple[str, ...]:
    """Their names of our tensor by the first rule that matches; () where none does."""
    for pattern, theirs in rules:
        if match := re.fullmatch(pattern, name):
            return tuple(t.format(*match.groups()) for t in theirs)
    return ()


def under(prefix: str, inner: Callable[[str], Link | None]) -> Callable[[str], Link | None]:
    """Links of a module that our model holds under `prefix`."""

    def link(name: str) -> Link | None:
        if not name.startswith(prefix):
            return None
        found = inner(name[len(prefix) :])
        return found and replace(found, ours=name)

    return link


@dataclass(frozen=True)
class OwnLayout(WeightLayout):
    """Our own names of one model's tensors; a file of which more than half are among them is one of ours."""

    own: frozenset[str] = frozenset()

    def matches(self, names: Collection[str]) -> bool:
        """Does the file hold this model's names?"""
        return 2 * len(self.own.intersection(names)) > len(names)

    @classmethod
    def of(cls, model: nn.Module) -> OwnLayout:
        """The layout of a model's own checkpoints."""
        return cls("partseg", (), lambda name: Link(name, (name,)), own=frozenset(model.state_dict()))
