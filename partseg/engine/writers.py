"""Where numbers and pictures of a run go: console and log.txt, metrics.jsonl, TensorBoard, Weights & Biases.

Writers live on rank 0 only; the hooks give every writer everything.
"""

from __future__ import annotations

import copy
import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import rich
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from partseg.utils import distributed
from partseg.utils.config import instantiate
from partseg.utils.files import write_atomic

LOG = logging.getLogger("partseg")


class Writer(Protocol):
    """Receives what hooks report. All methods but `scalars` may stay as they are here: they do nothing."""

    def scalars(self, values: Mapping[str, float], *, iteration: int) -> None:
        """Flat names (`train/loss`, `oracle_obj/mIoU_unseen`) and numbers of one iteration."""

    def image(self, name: str, picture: np.ndarray, *, iteration: int) -> None:
        """A uint8 picture [h, w, 3]."""

    def progress(self, iteration: int) -> None:
        """Called after every step; must be cheap."""

    def close(self) -> None:
        """Called once, also after an error."""


def start_log(directory: Path | None) -> None:
    """Messages of partseg go to the console and, where a `directory` is given, to its log.txt; only rank 0 informs."""
    for handler in list(LOG.handlers):
        LOG.removeHandler(handler)
        handler.close()
    LOG.propagate = False
    LOG.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    handlers: list[logging.Handler] = [_ConsoleHandler()]
    if directory:
        handlers.append(logging.FileHandler(directory / "log.txt", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        LOG.addHandler(handler)


@contextmanager
def open_writers(
    nodes: Mapping[str, Any], *, directory: Path, start: int, iterations: int
) -> Iterator[Sequence[Writer]]:
    """The writers of a config group on rank 0, none elsewhere; closed at the end."""
    writers: list[Writer] = []
    try:
        if distributed.is_main():
            for node in nodes.values():
                writers.append(instantiate(node, directory=directory, start=start, iterations=iterations))
        yield writers
    finally:
        for writer in writers:
            writer.close()


class ConsoleWriter(Writer):
    """A progress bar on a terminal, one line per report everywhere else; log.txt gets the lines in both cases."""

    def __init__(self, directory: Path, *, start: int, iterations: int) -> None:
        self.iterations = iterations
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = rich.get_console()
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(directory.name, total=iterations, completed=start)
        self.bar.start()

    def scalars(self, values: Mapping[str, float], *, iteration: int) -> None:
        """One line for steps; for an evaluation one per evaluator, figures below each other. metrics.jsonl has all."""
        train = {k.removeprefix("train/"): v for k, v in values.items() if k.startswith("train/")}
        for line in score_lines(values):
            LOG.info("%d/%d  %s", iteration, self.iterations, line)
        if train:
            words = []
            left = timedelta(seconds=round(train.pop("seconds_per_step") * (self.iterations - iteration)))
            share = train.pop("data_share")
            words += [f"{name} {value:.4g}" for name, value in train.items()] + [f"data {share:.0%}", f"left {left}"]
            LOG.info("%d/%d  %s", iteration, self.iterations, "  ".join(words))

    def progress(self, iteration: int) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=iteration)

    def close(self) -> None:
        """Give the terminal back."""
        self.bar.stop()


def score_lines(values: Mapping[str, float]) -> list[str]:
    """One aligned line per evaluator: its mean over all classes, over seen and unseen ones, and their harmonic mean.

    Of evaluators without an mIoU the first four figures.
    """
    by_name: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        name, _, score = key.partition("/")
        if name != "train" and score and "/" not in score:
            by_name.setdefault(name, {})[score] = value
    width = max(map(len, by_name), default=0)
    lines = []
    for name, scores in by_name.items():
        mean = [score for score in scores if score == "mIoU" or score.startswith("mIoU_")] or list(scores)[:4]
        figures = "  ".join(f"{score.removeprefix('mIoU_'):>8} {scores[score]:6.2f}" for score in mean)
        lines.append(f"{name:<{width}}  {figures}")
    return lines


class JsonlWriter(Writer):
    """metrics.jsonl: one JSON object per report. A resumed run drops what a killed one wrote beyond its checkpoint."""

    def __init__(self, directory: Path, *, start: int, iterations: int) -> None:
        path = directory / "metrics.jsonl"
        if path.is_file():
            write_atomic(path, "".join(_lines_until(path, start)).encode())
        self.file = path.open("a", encoding="utf-8")

    def scalars(self, values: Mapping[str, float], *, iteration: int) -> None:
        """One line, on the disk at once."""
        self.file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TensorBoardWriter(Writer):
    """TensorBoard event files in the run directory; needs the package tensorboard (extra `plot`)."""

    def __init__(self, directory: Path, *, start: int, iterations: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("logger.tensorboard needs the package tensorboard: pip install tensorboard") from error
        self.events = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1 if start else None)

    def scalars(self, values: Mapping[str, float], *, iteration: int) -> None:
        """One scalar each."""
        for name, value in values.items():
            self.events.add_scalar(name, value, iteration)

    def image(self, name: str, picture: np.ndarray, *, iteration: int) -> None:
        """The picture as it is."""
        self.events.add_image(name, picture, iteration, dataformats="HWC")

    def close(self) -> None:
        """Flush."""
        self.events.close()


class WandbWriter(Writer):
    """Weights & Biases, one run id for the life of the run directory; offline where login or network is missing."""

    def __init__(
        self,
        directory: Path,
        *,
        start: int,
        iterations: int,
        project: str = "partseg",
        entity: str | None = None,
        mode: Literal["online", "offline"] = "online",
    ) -> None:
        import wandb

        if mode == "online" and not wandb.api.api_key:
            LOG.warning(
                "wandb: not logged in, writing offline to %s; later: wandb login, wandb sync", directory / "wandb"
            )
            mode = "offline"
        options: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "dir": directory,
            "name": directory.name,
            "id": _run_id(directory / "wandb_run_id.txt"),
            "resume": "allow",
            "config": yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8")),
            "settings": wandb.Settings(console="off", silent=True, init_timeout=60),
        }
        try:
            self.run = wandb.init(mode=mode, **options)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            LOG.warning("wandb: %s; writing offline to %s", str(error).splitlines()[0], directory / "wandb")
            self.run = wandb.init(mode="offline", **options)
        # a resumed run may repeat iterations, and wandb's own step counter never goes back
        self.run.define_metric("*", step_metric="iteration")

    def scalars(self, values: Mapping[str, float], *, iteration: int) -> None:
        """One log call."""
        self.run.log({"iteration": iteration, **values})

    def image(self, name: str, picture: np.ndarray, *, iteration: int) -> None:
        """The picture as it is."""
        import wandb

        self.run.log({"iteration": iteration, name: wandb.Image(picture)})

    def close(self) -> None:
        """Wait for uploads."""
        self.run.finish()


class _ConsoleHandler(logging.Handler):
    """Prints above a live progress bar; rich would otherwise break long lines at 80 columns in a log file.

    Tracebacks are for log.txt.
    """

    def emit(self, record: logging.LogRecord) -> None:
        record = copy.copy(record)
        record.exc_info = record.exc_text = None
        rich.get_console().print(self.format(record), soft_wrap=True, markup=False, highlight=False)


def evaluated(directory: Path) -> set[int]:
    """Iterations whose evaluation stands in metrics.jsonl, which is where it is written last."""
    records = read_metrics(directory)
    return {r["iteration"] for r in records if not any(key.startswith("train/") for key in r)}


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, none where there is no such file."""
    path = directory / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [record for line in lines if (record := _record(line))]


def _lines_until(path: Path, iteration: int) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if (record := _record(line)) and record["iteration"] <= iteration]


def _record(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the last line of a killed run
        return None


def _run_id(path: Path) -> str:
    if not path.is_file():
        write_atomic(path, secrets.token_hex(4).encode())
    return path.read_text(encoding="utf-8").strip()
