"""The tiny run: as a module, in forked processes, and as a command."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "tiny.py"


@pytest.fixture(scope="session")
def tiny():
    """tests/engine/tiny.py as a module."""
    spec = importlib.util.spec_from_file_location("partseg_tests_tiny", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_of(tiny):
    """`tiny.run_of`, with writers that are closed after the test."""
    made = []

    def make(directory, **options):
        directory.mkdir(parents=True, exist_ok=True)
        made.append(tiny.run_of(directory, **options))
        return made[-1]

    yield make
    for run in made:
        for writer in run.writers:
            writer.close()


@pytest.fixture
def start_tiny():
    """Starts tests/engine/tiny.py with `key=value` arguments; returns the process, which ends with the test."""
    started = []

    def start(**options) -> subprocess.Popen:
        arguments = [f"{key.replace('__', '.')}={value}" for key, value in options.items()]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(SCRIPT), *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
