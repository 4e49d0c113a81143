"""A collected table as Markdown, LaTeX or CSV: measured mean and standard error beside the published number.

Every form carries the averaging rule, the protocol version and, for synthetic runs, a warning in words; synthetic cells
are marked one by one, so that copying a row keeps the mark.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from partseg.reproduce.table import Column, Table

SYNTHETIC_NOTE = "SYNTHETIC smoke run: these numbers say that the pipeline works and nothing about any method."
SYNTHETIC_MARK = "†synthetic"


@dataclass(frozen=True)
class Cell:
    """Mean over seeds (percent or the column's unit), standard error (None for one seed), and the paper's number."""

    mean: float | None = None
    standard_error: float | None = None
    num_seeds: int = 0
    published: float | None = None
    reason: str = "not run"
    synthetic: bool = False

    @property
    def difference(self) -> float | None:
        """Measured minus published; None where either is missing or the run was synthetic."""
        if self.mean is None or self.published is None or self.synthetic:
            return None
        return self.mean - self.published

    @property
    def measured(self) -> str:
        """`50.02 ± 0.51 (n=5)`, or why there is no number."""
        if self.mean is None:
            return self.reason
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2f}"
        return f"{self.mean:.2f}{error} (n={self.num_seeds})" + (f" {SYNTHETIC_MARK}" if self.synthetic else "")


@dataclass(frozen=True)
class CollectedTable:
    """A table with its cells [rows][columns] and the facts printed under it."""

    table: Table
    cells: Sequence[Sequence[Cell]]
    averaging: str
    protocol_version: str

    @property
    def synthetic(self) -> bool:
        """True when any cell came from synthetic data."""
        return any(cell.synthetic for row in self.cells for cell in row)

    @property
    def footnote(self) -> str:
        """What a reader needs to compare these numbers with others."""
        note = (
            f"measured / published / difference; averaging: {self.averaging}; protocol version: {self.protocol_version}"
        )
        return f"{SYNTHETIC_NOTE} {note}" if self.synthetic else note


def markdown(collected: CollectedTable) -> str:
    """GitHub table; each cell reads `measured / published / difference`."""
    table = collected.table
    lines = [f"### {table.title}", ""]
    if collected.synthetic:
        lines += [f"**{SYNTHETIC_NOTE}**", ""]
    lines.append("| System | " + " | ".join(_heading(column) for column in table.columns) + " |")
    lines.append("|---" * (len(table.columns) + 1) + "|")
    for row, cells in zip(table.rows, collected.cells, strict=True):
        lines.append(f"| {row.system} | " + " | ".join(_triple(cell) for cell in cells) + " |")
    return "\n".join([*lines, "", collected.footnote, ""])


def latex(collected: CollectedTable) -> str:
    """booktabs tabular for a paper: mean and error, the best of a column in bold, the published number in grey beside.

    Rows with neither number are left out. Costs have no best, and synthetic numbers neither.
    """
    table = collected.table
    columns = list(zip(*collected.cells, strict=True))
    best = [max((c.mean for c in cells if c.mean is not None and not c.synthetic), default=None) for cells in columns]
    lines = [
        f"% {table.title}",
        rf"% needs \usepackage{{booktabs, xcolor}}; grey: published; {collected.footnote}",
        r"\begin{tabular}{l" + "c" * len(table.columns) + "}",
        r"\toprule",
    ]
    lines += ["System & " + " & ".join(_escape(_heading(column)) for column in table.columns) + r" \\", r"\midrule"]
    for row, cells in zip(table.rows, collected.cells, strict=True):
        if any(cell.mean is not None or cell.published is not None for cell in cells):
            tops = [None] * len(best) if table.measure else best
            marked = [_tex(cell, bold=cell.mean is not None and cell.mean == top) for cell, top in zip(cells, tops)]
            lines.append(f"{_escape(row.system)} & " + " & ".join(marked) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex(cell: Cell, *, bold: bool) -> str:
    parts = []
    if cell.mean is not None:
        error = "" if cell.standard_error is None else rf" $\pm$ {cell.standard_error:.2f}"
        mark = _escape(f" {SYNTHETIC_MARK}") if cell.synthetic else ""
        parts.append((rf"\textbf{{{cell.mean:.2f}}}" if bold else f"{cell.mean:.2f}") + error + mark)
    if cell.published is not None:
        parts.append(rf"\textcolor{{gray}}{{{cell.published:.2f}}}")
    return " ".join(parts) or "--"


def comma_separated(collected: CollectedTable) -> str:
    """One line per cell, so that a spreadsheet can pivot it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["table", "system", "group", "metric", "measured", "standard_error", "num_seeds", "published", "difference"]
        + ["averaging", "protocol_version", "synthetic", "note"]
    )
    table = collected.table
    for row, cells in zip(table.rows, collected.cells, strict=True):
        for column, cell in zip(table.columns, cells, strict=True):
            numbers = (cell.mean, cell.standard_error, cell.num_seeds, cell.published, cell.difference)
            writer.writerow(
                [table.name, row.system, column.group, column.name]
                + ["" if number is None else number for number in numbers]
                + [collected.averaging, collected.protocol_version, cell.synthetic]
                + ["" if cell.mean is not None else cell.reason]
            )
    return out.getvalue()


def _heading(column: Column) -> str:
    return f"{column.group} {column.name}"


def _triple(cell: Cell) -> str:
    published = "-" if cell.published is None else f"{cell.published:.2f}"
    difference = "-" if cell.difference is None else f"{cell.difference:+.2f}"
    return f"{cell.measured} / {published} / {difference}"


def _escape(text: str) -> str:
    for plain, tex in (("\\", r"\textbackslash{}"), ("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#")):
        text = text.replace(plain, tex)
    return text.replace("±", r"$\pm$").replace("†", r"$\dagger$")
