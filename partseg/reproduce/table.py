"""A table as data: its rows are runs, its columns are result keys, and the published number of each cell.

Read from `scripts/tables/table<N>.yaml`; `published.yaml` beside them holds the paper's numbers. Nothing here runs or
trains: `plan.py` turns rows into runs, `collect.py` reads finished results, `render.py` prints.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PUBLISHED_FILE = "published.yaml"
SOURCES = ("experiment", "stage", "tool", "missing")
"""What a row's numbers may come from, one of them per row."""
LONGEST_NAME = 200
"""Of a run's folder: what an evaluation adds must fit too."""


@dataclass(frozen=True)
class Column:
    """One printed number: `key` in a result's metrics under `protocol`; `published` is a path or None.

    A key with dots is a path in the protocol's whole entry: `averages.iou.nonzero.seen`, another averaging rule, and
    `classes/dog's head/AP` the score of one class of instances.
    """

    group: str
    name: str
    protocol: str
    key: str
    published: str | None


@dataclass(frozen=True)
class Row:
    """One system or ablation. `missing` says why there is no run to start (a system that is not built).

    `evaluation` are overrides of the evaluation alone: rows that differ in nothing else share their trainings. Instead
    of an experiment a row may name a `stage` of scripts/stages/, "<recipe>/<stage>", or what a `tool` measures without
    a network, "<tool>/<what>".
    """

    system: str
    path: str
    dataset: str
    experiment: str | None = None
    overrides: tuple[str, ...] = ()
    missing: str | None = None
    evaluation: tuple[str, ...] = ()
    stage: str | None = None
    tool: str | None = None

    @property
    def run_name(self) -> str:
        """Directory name of the row's runs; equal rows of different tables share it, so they train once."""
        if self.experiment is None:
            raise ValueError(f"row {self.system!r} has no experiment to run: {self.missing}")
        return _folder("__".join([self.experiment, *(_slug(override) for override in sorted(self.overrides))]))

    @property
    def evaluation_name(self) -> str:
        """What its results' folder has behind the data set's name; nothing for a plain evaluation."""
        return _folder("".join(f"__{_slug(override)}" for override in sorted(self.evaluation)))


@dataclass(frozen=True)
class Table:
    """Rows and columns of one table, and the published value of each cell (NaN-free: a missing one is None)."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    published: Mapping[str, Any]
    cross_dataset: bool = False
    measure: bool = False
    evaluator: str | None = None
    """What scores the runs; None: both protocols of the paper, with everything that its tables need."""
    best: str | None = None
    """Whose best checkpoint is scored; None: each protocol's own."""

    def published_value(self, row: Row, column: Column) -> float | None:
        """The paper's number for a cell, None where the paper has none."""
        if column.published is None:
            return None
        return _look_up(self.published, column.published.replace("{row}", row.path))

    @property
    def protocols(self) -> tuple[str, ...]:
        """Protocols whose best checkpoints the table needs, in column order."""
        return (self.best,) if self.best else tuple(dict.fromkeys(column.protocol for column in self.columns))


def load_table(path: str | Path) -> Table:
    """Read a table file and the published numbers beside it; ValueError names the file and what is wrong in it."""
    path = Path(path)
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("table*.yaml")) if path.parent.is_dir() else []
        raise FileNotFoundError(f"no table file {path}; there are {known or 'none beside it'}")
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    _check_keys(
        path, "table", data, {"title", "dataset", "columns", "rows"}, {"cross_dataset", "measure", "evaluator", "best"}
    )
    published = yaml.safe_load((path.parent / PUBLISHED_FILE).read_text(encoding="utf-8"))
    return Table(
        name=path.stem,
        title=data["title"],
        columns=tuple(column for group in data["columns"] for column in _columns(path, group)),
        rows=tuple(_row(path, entry, data["dataset"]) for entry in data["rows"]),
        published=published,
        cross_dataset=bool(data.get("cross_dataset", False)),
        measure=bool(data.get("measure", False)),
        evaluator=data.get("evaluator"),
        best=data.get("best"),
    )


def _columns(path: Path, group: Mapping[str, Any]) -> list[Column]:
    _check_keys(path, "column group", group, {"group", "protocol", "metrics"}, {"published"})
    columns = []
    for name, (key, published_key) in group["metrics"].items():
        prefix = group.get("published")
        published = f"{prefix}.{published_key}" if prefix else None
        columns.append(Column(str(group["group"]), str(name), group["protocol"], key, published))
    return columns


def _row(path: Path, entry: Mapping[str, Any], dataset: str) -> Row:
    _check_keys(path, "row", entry, {"system"}, {*SOURCES, "overrides", "evaluation", "row", "dataset"})
    given = [key for key in SOURCES if key in entry]
    if len(given) != 1:
        raise ValueError(f"{path}: row {entry['system']!r} needs one of {', '.join(SOURCES)}; it has {given}")
    return Row(
        system=entry["system"],
        path=str(entry.get("row", entry["system"])),
        dataset=entry.get("dataset", dataset),
        experiment=entry.get("experiment"),
        overrides=tuple(entry.get("overrides", ())),
        missing=entry.get("missing"),
        evaluation=tuple(entry.get("evaluation", ())),
        stage=entry.get("stage"),
        tool=entry.get("tool"),
    )


def _check_keys(path: Path, what: str, data: Mapping[str, Any], required: set[str], optional: set[str]) -> None:
    missing, unknown = sorted(required - set(data)), sorted(set(data) - required - optional)
    if missing or unknown:
        raise ValueError(f"{path}: a {what} lacks {missing} and has unknown keys {unknown}; given {sorted(data)}")


def _look_up(tree: Any, path: str) -> float | None:
    """Follow a dotted path through mappings and lists; None where it ends early."""
    for step in path.split("."):
        if isinstance(tree, Sequence) and not isinstance(tree, str):
            tree = tree[int(step)] if step.isdigit() and int(step) < len(tree) else None
        elif isinstance(tree, Mapping):
            tree = tree.get(step)
        else:
            return None
    return None if tree is None else float(tree)


def _folder(name: str) -> str:
    """A long name's beginning and checksum: file systems end at 255 bytes."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 10]}__{zlib.crc32(name.encode()):08x}"


def _slug(override: str) -> str:
    """`criterion.terms.separation.weight=0` -> `separation.weight=0`: the last two words of the key are enough."""
    key, _, value = override.partition("=")
    return re.sub(r"[^\w.=-]+", "-", ".".join(key.lstrip("+~").split(".")[-2:]) + "=" + value)
