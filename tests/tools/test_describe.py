"""tools/describe.py as a user runs it."""

import subprocess
import sys

import pytest


def describe(root, *arguments):
    return subprocess.run(
        [sys.executable, "tools/describe.py", *arguments], cwd=root, capture_output=True, text=True, timeout=300
    )


def test_tables(root):
    result = describe(root, "model=clipseg_tiny", "classes=12", "batch_size=4")
    assert result.returncode == 0, result.stderr
    lines = {line.rsplit(maxsplit=6)[0]: line.split()[-6:] for line in result.stdout.splitlines() if "made-up" in line}
    classes, _, gflop, text, image, batch = map(float, lines["made-up 12"])
    assert classes == 12 and gflop > 0 and abs(batch - text - 4 * image) <= 3
    assert "image tower" in result.stdout and "reach no output" in result.stdout


def test_mistakes_are_one_line(root):
    for argument, words in (("model=part_clipsec", "part_clipseg"), ("vocabulary=coco", "pascal_part_116")):
        result = describe(root, "model=part_clipseg_tiny", argument)
        assert result.returncode == 2 and "Traceback" not in result.stderr and words in result.stderr
