"""The run directory: which one, what it continues, and the files that say what was run."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from partseg.data.dataset import PartSegDataset
from partseg.engine.checkpoint import digest, load, newest
from partseg.engine.lock import locked
from partseg.engine.trainer import Trainer
from partseg.engine.writers import start_log
from partseg.evaluation import results
from partseg.utils import config as configs
from partseg.utils import distributed, env
from partseg.utils.errors import one_line
from partseg.utils.files import write_atomic
from partseg.utils.run_names import changes_training

LOG = logging.getLogger(__name__)

RESUME_WORDS = ("auto", "never")
"""Values of `resume` that are no directory."""


@contextmanager
def open_run(config: DictConfig) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """The run's directory, locked inside the block, and the checkpoint it continues from, if any; starts log.txt.

    Rank 0 decides for all. ValueError for a directory in use and for resume=never on one that has a checkpoint,
    FileNotFoundError for resume=<directory> without one. Errors inside the block are logged.
    """
    if not distributed.is_main():
        start_log(None)
    with ExitStack() as stack:
        directory, found = distributed.from_main(lambda: _claim(config, stack))
        try:
            log_beginning()
            _check_same_settings(config)
            state = None if found is None else _same_on_all(found)
            if state is not None:
                LOG.info("continuing %s from iteration %d", found, state["iteration"])
                for line in differences(state["config"], plain(config)):
                    LOG.warning("the config differs from the checkpoint's: %s", line)
            yield directory, state
        except Exception as error:
            LOG.error("stopped by %s: %s", type(error).__name__, one_line(error), exc_info=True)
            raise


def log_beginning() -> None:
    """What came before the first line of the log: imports, and processes that found each other."""
    launched = distributed.world_size() > 1
    seconds = env.seconds_since_start(os.getpid(), *([os.getppid()] if launched else []))
    LOG.info("start: %d processes, %.1f s after the command", distributed.world_size(), seconds or 0.0)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Log how long a part of the start took: a start that hangs or crawls says where."""
    start = time.perf_counter()
    distributed.at(f"the start, {name}")
    yield
    LOG.info("start: %s, %.1f s", name, time.perf_counter() - start)


def write_settings(config: DictConfig, directory: Path) -> None:
    """Write config.yaml and env.txt, once the run is really going on: a resume that is refused leaves the old ones."""
    if distributed.is_main():
        configs.save(config, directory / "config.yaml")
        write_atomic(directory / "env.txt", env.report().encode())


def run_directory(config: DictConfig) -> Path:
    """Where the run of a config lives."""
    return Path(config.output_root) / config.name if config.resume in RESUME_WORDS else Path(config.resume)


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


def _claim(config: DictConfig, stack: ExitStack) -> tuple[Path, Path | None]:
    """The directory, locked until `stack` is closed, and its newest checkpoint."""
    directory = run_directory(config)
    if directory.is_file():
        raise ValueError(
            f"resume={directory} is a file; give the run's directory, or init_from={directory} to start anew"
        )
    found = newest(directory / "checkpoints")
    if config.resume == "never" and found is not None:
        raise ValueError(
            f"{directory} holds a run already and resume=never would overwrite it: choose another name=, delete it, "
            "or continue it with resume=auto"
        )
    if config.resume not in RESUME_WORDS and found is None:
        raise FileNotFoundError(f"resume={directory}: no checkpoint at {directory / 'checkpoints'}")
    directory.mkdir(parents=True, exist_ok=True)
    start_log(directory)
    stack.enter_context(locked(directory))
    return directory, newest(directory / "checkpoints")  # again: another job may have had the lock until now


def _same_on_all(path: Path) -> dict[str, Any]:
    """The checkpoint, once every process has read the same bytes; ValueError on all that names machines and folders.

    Machines without a common output_root would otherwise go on from different iterations, or one from none.
    """
    if distributed.world_size() == 1:
        return load(path)
    state, failure = None, ""
    try:
        state = load(path)
        seen = f"iteration {state['iteration']}, sha256 {digest(path)[:12]}"
    except (OSError, ValueError) as error:
        seen = failure = one_line(error)
    folder = f"{path.parent.absolute()} on {socket.gethostname()}"
    reports = distributed.gather_objects((seen, folder))
    if len({seen for seen, _ in reports}) > 1:
        found = "; ".join(dict.fromkeys(f"{folder}: {seen}" for seen, folder in reports))
        raise ValueError(
            f"the processes do not find the same checkpoint ({found}): output_root must be one folder for all machines"
        )
    if state is None:
        raise ValueError(failure)
    return state


def _check_same_settings(config: DictConfig) -> None:
    """ValueError on all processes where one was started with settings that would train something else."""
    first, *others = distributed.gather_objects(plain(config))
    for rank, other in enumerate(others, 1):
        if lines := differences(first, other):
            raise ValueError(f"rank {rank} was started with other settings than rank 0: {'; '.join(lines[:3])}")


def _flat(node: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(node, Mapping):
        return [pair for name, value in node.items() for pair in _flat(value, f"{key}.{name}".lstrip("."))]
    return [(key, node)]


def banner(trainer: Trainer, directory: Path, *, train_set: Sized, val_set: PartSegDataset, start: int) -> str:
    """What is about to run, in a few lines: folder, device, data, classes, steps, and what is trained."""
    model, classes = trainer.model, trainer.vocabulary
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    unseen = int((~val_set.vocabulary.seen).sum())
    steps = f"{start} to {trainer.iterations}" if start else f"{trainer.iterations}"
    rows = {
        "run": str(directory),
        "device": f"{trainer.device}, {distributed.world_size()} processes, {trainer.precision}",
        "data": f"{len(train_set):,} training and {len(val_set):,} {val_set.split} images of {val_set.name}",
        "classes": f"{len(classes)} trained object-parts of {classes.num_objects} objects; {unseen} unseen ones scored",
        "steps": f"{steps}, each of {trainer.accumulation} micro-batches",
        "trained": f"{trained:,} of {total:,} weights of {type(model).__name__}",
    }
    return "\n".join(f"  {name:<8} {value}" for name, value in rows.items())


def farewell(directory: Path, *, iteration: int, complete: bool, best: Mapping[str, Mapping[str, Any]]) -> str:
    """What became of the run and what to do next."""
    if not complete:
        return f"stopped at iteration {iteration}, everything is saved: the same command goes on from there"
    return (
        f"finished {directory} at iteration {iteration}: {outcome(directory, best)}\n  a page with pictures: "
        f"partseg eval ckpt={directory} save_predictions=true, then partseg report run={directory}"
    )


def outcome(directory: Path, best: Mapping[str, Mapping[str, Any]]) -> str:
    """A finished run in one line: its best scores, and where all scores are."""
    found = "; ".join(f"{e.get('score', metric)} {e['value']:.2f} at {e['iteration']}" for metric, e in best.items())
    written = directory / results.FILE_NAME
    return ", ".join([*([f"best {found}"] if found else []), str(written if written.is_file() else directory)])
