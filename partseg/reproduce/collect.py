"""Finished results to cells: every file is checked to be what the cell needs before a number is taken from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partseg.evaluation import results
from partseg.reproduce.plan import Options, measure_directory, result_directory, table_dataset
from partseg.reproduce.render import Cell, CollectedTable
from partseg.reproduce.table import Column, Row, Table
from partseg.vocabulary.shipped import shipped

CLASS = "classes/"
"""How keys begin that name a class of instances: classes/dog's head/AP."""


def collect(table: Table, options: Options) -> CollectedTable:
    """The table with all numbers that are there; a cell without one says why.

    ValueError names a results.json of another protocol, vocabulary, averaging rule, or of synthetic data where real
    data is expected: nothing is skipped silently.
    """
    averagings: set[str] = set()
    cells = [[_cell(table, row, column, options, averagings) for column in table.columns] for row in table.rows]
    if len(averagings) > 1:
        raise ValueError(
            f"results under {options.output} average by different rules {sorted(averagings)}; evaluate again"
        )
    return CollectedTable(table, cells, averaging=next(iter(averagings), "present"), protocol_version=results.FORMAT)


def _cell(table: Table, row: Row, column: Column, options: Options, averagings: set[str]) -> Cell:
    published = table.published_value(row, column)
    if row.missing is not None:
        return Cell(published=published, reason=row.missing)
    if table.measure:
        return _measured_cell(row, column, options, published)
    values: list[float] = []
    undefined = False
    for seed in options.seeds if row.tool is None else options.seeds[:1]:  # a tool draws nothing
        folder = result_directory(table, row, seed=seed, protocol=table.best or column.protocol, options=options)
        if not (folder / results.FILE_NAME).is_file():
            continue
        content = results.read(folder)
        _check(folder, content, table=table, row=row, column=column, options=options)
        entry = content["protocols"][column.protocol]
        averagings |= {entry["averaging"]} if "averaging" in entry else set()  # instances have none
        try:
            value = _value(entry, column.key)
        except KeyError:
            if options.smoke and column.key.startswith(CLASS):  # a class that the drawn data set has not
                undefined = True
                continue
            raise ValueError(
                f"{folder / results.FILE_NAME} has no {column.key!r} under {column.protocol!r}; evaluate again"
            ) from None
        if value is None:
            undefined = True
        else:
            values.append(float(value))
    reason = "not defined on this data" if undefined else "not run"
    return summarise(values, published=published, reason=reason, synthetic=options.smoke)


def _value(entry: Mapping[str, Any], key: str) -> float | None:
    if key.startswith(CLASS):
        _, name, score = key.split("/")
        return {f"{each['object']}'s {each['part']}": each for each in entry["classes"]}[name][score]
    if key in entry["metrics"] or not key.startswith("averages."):
        return entry["metrics"][key]
    value: Any = entry
    for step in key.split("."):
        value = value[step]
    return value


def summarise(values: Sequence[float], *, published: float | None, reason: str = "not run", synthetic: bool) -> Cell:
    """Mean and standard error (sample standard deviation over sqrt(n)) of one cell's seeds."""
    if not values:
        return Cell(published=published, reason=reason, synthetic=synthetic)
    count = len(values)
    mean = sum(values) / count
    error = None if count == 1 else math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1) / count)
    return Cell(mean, error, count, published, synthetic=synthetic)


def _measured_cell(row: Row, column: Column, options: Options, published: float | None) -> Cell:
    path = measure_directory(row, options) / "measure.json"
    if not path.is_file():
        return Cell(published=published)
    value = json.loads(path.read_text(encoding="utf-8")).get(column.key)
    if value is None:
        return Cell(published=published, reason="not measured on this machine")
    return Cell(float(value), None, 1, published, synthetic=options.smoke)


def _check(
    folder: Path, content: Mapping[str, Any], *, table: Table, row: Row, column: Column, options: Options
) -> None:
    path = folder / results.FILE_NAME
    if column.protocol not in content["protocols"]:
        raise ValueError(
            f"{path} holds protocols {sorted(content['protocols'])}, the table needs {column.protocol!r}: "
            "move the file away, or evaluate again"
        )
    if content["synthetic"] and not options.smoke:
        raise ValueError(f"{path} was measured on synthetic data and cannot stand in {table.title!r}: move it away")
    if options.smoke:
        return
    expected = shipped(table_dataset(table, row))
    allowed = {expected.key, expected.with_unseen(()).key} if table.cross_dataset else {expected.key}
    if content["vocabulary"]["key"] not in allowed:
        raise ValueError(
            f"{path} was measured with vocabulary {content['vocabulary']['name']!r} "
            f"(key {content['vocabulary']['key']}), the table needs {expected.name!r} ({expected.key}): move it away"
        )
    if bool(content["cross_dataset"]) != table.cross_dataset:
        raise ValueError(f"{path} has cross_dataset={content['cross_dataset']}, the table needs {table.cross_dataset}")
