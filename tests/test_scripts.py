"""Shell scripts: none hands its own arguments to the installation."""

import re
import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.sh"))
SOURCING = [path for path in SCRIPTS if path.name != "env.sh" and "scripts/env.sh" in path.read_text()]


@pytest.mark.parametrize("path", SOURCING, ids=lambda path: path.name)
def test_extras_are_given(path):
    line = re.search(r"^source scripts/env\.sh(.*)$", path.read_text(), re.M)
    assert line is not None and re.match(r' (""|[a-z,]+)( #|$)', line[1]), (
        "without an argument env.sh reads the script's"
    )


def test_arguments_of_a_caller_are_refused_as_extras():
    script = f'set -- train.iterations=40; source "{SCRIPTS[0].parent / "env.sh"}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "'train.iterations=40' is no list of extras" in done.stderr
