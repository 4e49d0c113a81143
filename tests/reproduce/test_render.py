import csv
import io
from dataclasses import replace

import pytest

from partseg.reproduce.render import SYNTHETIC_NOTE, Cell, CollectedTable, comma_separated, latex, markdown
from partseg.reproduce.table import Column, Row, Table


def collected(*, synthetic):
    columns = (Column("Pred-All", "Seen", "pred_all", "mIoU_seen", "x"), Column("Pred-All", "H", "pred_all", "h", None))
    rows = (Row("PartCLIPSeg", "p", "d", "e"), Row("ZSSeg+", "z", "d", missing="not built yet"))
    cells = (
        (Cell(44.0, 0.5, 5, 43.91, synthetic=synthetic), Cell(30.0, None, 1, None, synthetic=synthetic)),
        (Cell(published=38.05, reason="not built yet"), Cell()),
    )
    return CollectedTable(Table("table1", "Table 1", columns, rows, {}), cells, "present", "1")


def test_markdown_lays_measured_beside_published():
    text = markdown(collected(synthetic=False))
    assert "| PartCLIPSeg | 44.00 ± 0.50 (n=5) / 43.91 / +0.09 | 30.00 (n=1) / - / - |" in text
    assert "| ZSSeg+ | not built yet / 38.05 / - | not run / - / - |" in text
    assert "averaging: present; protocol version: 1" in text
    assert SYNTHETIC_NOTE not in text


@pytest.mark.parametrize("form", [markdown, latex])
def test_synthetic_numbers_are_marked_one_by_one_and_never_compared(form):
    text = form(collected(synthetic=True))
    assert SYNTHETIC_NOTE.split(":")[0] in text
    assert text.count("synthetic") >= 2
    assert "+0.09" not in text


def test_csv_has_one_line_per_cell_and_says_what_is_synthetic():
    rows = list(csv.DictReader(io.StringIO(comma_separated(collected(synthetic=True)))))
    assert len(rows) == 4
    assert rows[0]["measured"] == "44.0"
    assert rows[0]["difference"] == ""
    assert [r["synthetic"] for r in rows] == ["True", "True", "False", "False"]
    assert rows[2]["note"] == "not built yet"


def test_latex_is_ready_for_a_paper():
    table = collected(synthetic=False)
    text = latex(table)
    assert r"\begin{tabular}{lcc}" in text and r"\usepackage{booktabs, xcolor}" in text
    assert r"PartCLIPSeg & \textbf{44.00} $\pm$ 0.50 \textcolor{gray}{43.91} & \textbf{30.00} \\" in text
    assert r"ZSSeg+ & \textcolor{gray}{38.05} & -- \\" in text
    rows = (*table.table.rows, Row("CAT_Seg", "c", "d", missing="not built yet"), Row("CLIPSeg", "q", "d", "e"))
    cells = (*table.cells, (Cell(), Cell()), (Cell(43.0, 0.5, 5, None), Cell(31.5, None, 1)))
    text = latex(replace(table, table=replace(table.table, rows=rows), cells=cells))
    assert "CAT" not in text, "a row with neither number"
    assert r"CLIPSeg & 43.00 $\pm$ 0.50 & \textbf{31.50} \\" in text and r" & 30.00 \\" in text
    assert r"\textbf" not in latex(collected(synthetic=True))
