"""tools/benchmark.py as a user runs it, on the tiny network."""

import json
import subprocess
import sys

import pytest


def benchmark(root, *arguments):
    command = [sys.executable, "tools/benchmark.py", "launch.num_gpus=0", "bench.threads=1", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=500)


def test_mistakes_are_one_line(root):
    result = benchmark(root, "model=part_clipseg_tiny", "bench.mode=fast")
    assert result.returncode == 1 and "Traceback" not in result.stderr and "all or train or eval" in result.stderr


@pytest.mark.slow
def test_writes_what_the_tables_read_and_compares(root, tmp_path):
    path = tmp_path / "folder" / "measure.json"
    result = benchmark(root, "model=part_clipseg_tiny", f"json={path}", "bench.repeats=1", "bench.warmup=0")
    assert result.returncode == 0, result.stderr
    assert "units" in result.stdout and "saved_for_backward" in result.stdout
    figures = json.loads(path.read_text())
    assert 5 < figures["params_m"] < 20 and figures["memory_gb"] is None and figures["memory_gb_reason"]
    assert set(figures["measurements"]) == {"memory, batch 1", "train, batch 1", "eval, one image"}
    assert figures["measurements"]["memory, batch 1"]["bytes"]["rss_above_start"] > 10 * 2**20
    result = benchmark(root, "model=part_clipseg_tiny", f"json={path}2", "bench.mode=eval_memory")
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(path.with_name("measure.json2").read_text())["measurements"].values()
    assert found["bytes"]["rss_above_start"] > 2**20
    result = benchmark(root, f"bench.compare=[{path},{path}]")
    assert result.returncode == 0 and "train, batch 1: loss separation (units)" in result.stdout
    assert "   1.000" in result.stdout
