"""Every table script from nothing to its table on synthetic data, and what a second start and bad results do."""

import json
import subprocess
import sys

import pytest

from partseg.reproduce.table import load_table

TABLES = [f"table{n}" for n in (*range(1, 8), "A4", "A5", "A6", "A7", "A8")]
TABLES += [f"successors_{name}" for name in ("pascal_part_116", "ade20k_part_234", "partimagenet_40")]


def start(root, *arguments):
    command = [sys.executable, "tools/reproduce_table.py", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def check_table(root, output, name):
    """All rows and all published numbers are there, and every measured number is marked as synthetic."""
    text = (output / f"{name}.md").read_text()
    table = load_table(root / "scripts" / "tables" / f"{name}.yaml")
    assert "SYNTHETIC" in text
    for row in table.rows:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row.system} |"))
        for column in table.columns:
            published = table.published_value(row, column)
            assert published is None or f" / {published:.2f} / -" in line
        assert ("†synthetic" in line) == (row.experiment is not None and not table.measure) or "not measured" in line
    assert (output / f"{name}.tex").is_file() and (output / f"{name}.csv").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_table_runs_to_its_end(root, tmp_path):
    files = [f"scripts/tables/{name}.yaml" for name in TABLES]
    done = start(root, *files, "--smoke", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in TABLES:
        check_table(root, tmp_path, name)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("names", [["ops_table1", "ops_table3"], ["vlpart_table1", "vlpart_table2", "vlpart_table4"]])
@pytest.mark.usefixtures("processes_with_extras")
def test_tables_of_instances_run_to_their_end(root, tmp_path, names):
    """Rows of a recipe's stages among them."""
    done = start(root, *(f"scripts/tables/{name}.yaml" for name in names), "--smoke", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in names:
        table = load_table(root / "scripts" / "tables" / f"{name}.yaml")
        lines = (tmp_path / f"{name}.md").read_text().splitlines()
        for row in table.rows:
            line = next(line for line in lines if line.startswith(f"| {row.system} |"))
            assert row.missing in line if row.missing else "†synthetic" in line or "not defined" in line, line


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_only_what_is_missing_runs_and_foreign_results_are_refused(root, tmp_path):
    arguments = ("scripts/tables/table3.yaml", "--smoke", "--output", str(tmp_path))
    first = start(root, *arguments)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    check_table(root, tmp_path, "table3")
    assert first.stdout.count(" train ") == 2
    results = sorted(tmp_path.rglob("best_*/results.json"))  # trainings leave one each, too
    assert len(results) == 4
    results[0].unlink()
    again = start(root, *arguments)
    assert again.returncode == 0
    assert (again.stdout.count(" train "), again.stdout.count(" evaluate ")) == (0, 1)
    content = json.loads(results[0].read_text())
    del content["protocols"]["pred_all"], content["protocols"]["oracle_obj"]
    results[0].write_text(json.dumps(content))
    refused = start(root, *arguments)
    assert refused.returncode != 0
    assert str(results[0]) in refused.stderr.replace("\n", "") and "the table needs" in refused.stderr


def test_missing_data_is_said_before_anything_starts(root, tmp_path):
    done = start(root, "scripts/tables/table3.yaml", "--output", str(tmp_path), "--override", f"data_root={tmp_path}")
    assert done.returncode != 0
    assert "needs partimagenet_40" in done.stderr and "--smoke" in done.stderr
    assert not list(tmp_path.iterdir())
