"""What makes two command lines the same training: the run's name, and what a resumed run may change without a word."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

SAME_TRAINING = (
    "name",
    "resume",
    "output_root",
    "data_root",
    "local",
    "plugins",
    "allow_random",
    "launch",
    "logger",
    "hooks",
    "keep",
    "best",
    "eval",
    "eval_dataset",
    "evaluator",
    "predictor",
    "train.num_workers",
    "train.accumulation",
    "hydra",
)
"""Settings, with all below them, that leave the trained weights as they are. They are not part of a run's name, and a
resumed run may change them without a word."""


def changes_training(key: str) -> bool:
    """Whether a setting ("optimizer.lr") or a choice of a group ("dataset@eval_dataset") changes what is trained."""
    key = key.split("@")[-1]
    return not any(key == same or key.startswith(f"{same}.") for same in SAME_TRAINING)


def run_name(base: str, overrides: Sequence[str]) -> str:
    """`base` and every override that changes what is trained: `x__optimizer.lr-3e-4__seed-1`.

    Overrides are sorted, so their order on the command line does not matter.
    """
    words = [base]
    for override in sorted(map(_as_typed, overrides)):
        key, _, value = override.lstrip("+~").partition("=")
        if key != "experiment" and changes_training(key):
            words.append(re.sub(r"[^\w.+-]+", "_", f"{key}-{value}").strip("_"))
    name = "__".join(words)
    if len(name) > 200:  # file systems end at 255 bytes
        name = f"{name[:180]}__{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def _as_typed(override: str) -> str:
    return "recipe=official" if override.startswith("recipe=official_") else override
