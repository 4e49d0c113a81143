"""The run directory: which one, what it continues, and the files that say what was run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from partseg.engine.checkpoint import load, resolve
from partseg.engine.writers import start_log
from partseg.utils import config as configs
from partseg.utils import distributed, env
from partseg.utils.files import write_atomic
from partseg.utils.run_names import changes_training

LOG = logging.getLogger(__name__)


def open_run(config: DictConfig) -> tuple[Path, dict[str, Any] | None]:
    """The run's directory and the checkpoint it continues from, if any; starts log.txt, writes config.yaml and env.txt.

    Rank 0 decides for all. ValueError for resume=never on a directory that has a checkpoint, FileNotFoundError for
    resume=<directory> without one.
    """
    directory = distributed.broadcast_object(_directory(config) if distributed.is_main() else None)
    start_log(directory if distributed.is_main() else None)
    has_checkpoint = (directory / "checkpoints" / "latest.pt").is_file()
    state = load(directory) if has_checkpoint else None
    if distributed.is_main():
        if state is not None:
            LOG.info("continuing %s from iteration %d", directory, state["iteration"])
            for line in differences(state["config"], plain(config)):
                LOG.warning("the config differs from the checkpoint's: %s", line)
        configs.save(config, directory / "config.yaml")
        write_atomic(directory / "env.txt", env.report().encode())
    return directory, state


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config in dict, list, str and numbers, as checkpoints hold it."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per setting that the two configs do not share and that changes the result."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = [k for k in {**before, **after} if changes_training(k)]
    absent = "absent"
    return [
        f"{k} was {before.get(k, absent)!r}, is now {after.get(k, absent)!r}"
        for k in keys
        if before.get(k, absent) != after.get(k, absent)
    ]


def _directory(config: DictConfig) -> Path:
    own = Path(config.output_root) / config.name
    if config.resume not in ("auto", "never"):
        folder = Path(config.resume)
        resolve(folder)
        if folder.is_file():
            raise ValueError(
                f"resume={folder} is a file; give the run's directory, or init_from={folder} to start anew"
            )
        own = folder
    elif config.resume == "never" and (own / "checkpoints" / "latest.pt").exists():
        raise ValueError(
            f"{own} holds a run already and resume=never would overwrite it: choose another name=, delete it, "
            "or continue it with resume=auto"
        )
    own.mkdir(parents=True, exist_ok=True)
    return own


def _flat(node: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(node, Mapping):
        return [pair for name, value in node.items() for pair in _flat(value, f"{key}.{name}".lstrip("."))]
    return [(key, node)]
