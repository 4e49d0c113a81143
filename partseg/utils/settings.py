"""What the plain keys of configs/*.yaml may hold: one frozen dataclass per section, checked when a config is composed.

Everything else in a config is a `_target_` node, whose schema is the signature of what it builds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Bound:
    """A condition on a value and the words for what it allows."""

    allows: Callable[[Any], bool]
    words: str


def _is_folder_name(text: str) -> bool:
    return all(part not in ("", ".", "..") for part in text.split("/"))


Count = Annotated[int, Bound(lambda value: value >= 1, "of 1 or more")]
CountOrZero = Annotated[int, Bound(lambda value: value >= 0, "of 0 or more")]
Seed = Annotated[int, Bound(lambda value: 0 <= value < 2**63, "from 0 to 2^63 - 1")]
Text = Annotated[str, Bound(lambda value: value.strip() != "", "that is not empty")]
FolderName = Annotated[str, Bound(_is_folder_name, "that names a folder below output_root")]
ScoreName = Annotated[str, Bound(lambda value: re.fullmatch(r"[^/]+/[^/]+", value), "like oracle_obj/mIoU_harmonic")]
Positive = Annotated[float, Bound(lambda value: value > 0, "greater than 0")]
Share = Annotated[float, Bound(lambda value: 0 <= value <= 1, "from 0 to 1")]
Decay = Annotated[float, Bound(lambda value: 0 < value < 1, "between 0 and 1")]


@dataclass(frozen=True)
class Training:
    """`train`."""

    iterations: Count
    batch_size: Count
    accumulation: Count
    clip_norm: Positive | None
    precision: Literal["fp32", "bf16", "fp16"]
    tf32: bool
    deterministic: bool
    compile: bool
    sync_batch_norm: bool
    ema_decay: Decay | None
    prompt_share: Share | None
    num_workers: CountOrZero
    limit_images: Count | None


@dataclass(frozen=True)
class Validation:
    """`eval`."""

    split: Text
    batch_size: Count
    num_workers: CountOrZero
    limit_images: Count | None
    objects: Text | None
    instances: Literal["annotated", "classes"] | None
    phrases: bool


@dataclass(frozen=True)
class Best:
    """`best`."""

    metrics: tuple[ScoreName, ...]


@dataclass(frozen=True)
class Launch:
    """`launch`."""

    num_gpus: CountOrZero | None
    num_processes: Count


@dataclass(frozen=True)
class Measurement:
    """`bench` of benchmark.yaml."""

    mode: Literal["all", "train", "eval", "memory", "eval_memory", "data"]
    batch_sizes: tuple[Count, ...]
    classes: tuple[Count | None, ...]
    label_size: tuple[Count, Count]
    repeats: Count
    warmup: CountOrZero
    clock: Literal["wall", "cpu"]
    threads: Count | None
    layers: tuple[Text, ...]
    draw_texts: bool
    trace: Text | None
    compare: tuple[Text, Text] | None


@dataclass(frozen=True)
class Export:
    """`export` of export.yaml."""

    protocol: Literal["pred_all", "oracle_obj"]
    min_score: Share
    shard_size: Count


@dataclass(frozen=True)
class Settings:
    """The plain keys of train.yaml, and those that eval, score, export and benchmark.yaml add to them."""

    name: FolderName
    seed: Seed
    data_root: Text
    output_root: Text
    init_from: Text | tuple[Text, ...] | None
    resume: Text
    allow_random: bool
    plugins: tuple[Text, ...]
    train: Training
    eval: Validation
    keep: Count
    best: Best
    launch: Launch
    # eval.yaml and score.yaml
    ckpt: Text
    names: Text | None
    output: Text | None
    cross_dataset: bool
    save_predictions: bool
    plots: bool
    predictions: Text
    bits: Literal[8, 16]
    all_seen: bool
    # export.yaml
    export: Export
    # benchmark.yaml
    json: Text | None
    bench: Measurement


def problem(values: Mapping[str, Any], *, section: type = Settings, prefix: str = "") -> str | None:
    """The first value that its section does not allow, as one line with key, value and what is allowed; None without.

    Values that are still `???`, and keys without a rule, pass.
    """
    rules = get_type_hints(section, include_extras=True)
    for name, value in values.items():
        key, rule = f"{prefix}{name}", rules.get(name)
        if rule is None or value == "???":
            continue
        if isinstance(rule, type) and is_dataclass(rule) and isinstance(value, Mapping):
            if found := problem(value, section=rule, prefix=f"{key}."):
                return found
        elif not _accepts(rule, value):
            return f"{key}={json.dumps(value, ensure_ascii=False, default=str)}: it must be {_words(rule)}"
    return None


def without_rule(values: Mapping[str, Any], *, section: type = Settings, prefix: str = "") -> list[str]:
    """Keys that the schema does not know: groups and nodes at the top, and plain keys that would have no effect."""
    rules = get_type_hints(section, include_extras=True)
    unknown = []
    for name, value in values.items():
        if name not in rules:
            unknown.append(f"{prefix}{name}")
        elif is_dataclass(rules[name]) and isinstance(value, Mapping):
            unknown += without_rule(value, section=rules[name], prefix=f"{prefix}{name}.")
    return unknown


def _accepts(rule: Any, value: Any) -> bool:
    origin, inner = get_origin(rule), get_args(rule)
    if origin is Annotated:
        return _accepts(inner[0], value) and all(bound.allows(value) for bound in inner[1:])
    if origin in (Union, UnionType):
        return any(_accepts(choice, value) for choice in inner)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        items = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(items) == len(value) and all(map(_accepts, items, value))
    if rule is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is rule  # not isinstance: true is an int to Python


def _words(rule: Any) -> str:
    origin, inner = get_origin(rule), get_args(rule)
    if origin is Annotated:
        return " ".join([_words(inner[0]), *(bound.words for bound in inner[1:])])
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple:
        count = "" if inner[-1] is Ellipsis else f" of {len(inner)}"
        return f"a list{count}, in it {_words(inner[0])}"
    if is_dataclass(rule):
        return f"a section with {', '.join(get_type_hints(rule))}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}[rule]
