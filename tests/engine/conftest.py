"""The tiny run: as a module, in forked processes, and as a command."""

import importlib.util
import logging
import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from partseg.engine import writers

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


@pytest.fixture(autouse=True)
def _log_closed_afterwards():
    yield
    for handler in list(writers.LOG.handlers):
        writers.LOG.removeHandler(handler)
        handler.close()
    writers.LOG.propagate = True
    writers.LOG.setLevel(logging.NOTSET)


@pytest.fixture
def forked(tmp_path):
    """Runs `function()` in forked processes of one Gloo group; returns their exit codes.

    A fork spares the seconds that importing torch takes; one thread per process makes it safe, as in data workers.
    """
    context = multiprocessing.get_context("fork")
    calls = []

    def work(function, rank: int, count: int, store: str) -> None:
        torch.set_num_threads(1)
        if count > 1:
            store = torch.distributed.FileStore(store, count)
            torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
        function()
        if count > 1:
            torch.distributed.destroy_process_group()

    def run(function, *, processes: int = 1) -> list[int]:
        calls.append(None)
        arguments = [(function, rank, processes, f"{tmp_path}/store_{len(calls)}") for rank in range(processes)]
        started = [context.Process(target=work, args=a) for a in arguments]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns about forks of threaded processes
            for process in started:
                process.start()
        for process in started:
            process.join(60)
        return [process.exitcode for process in started]

    return run


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
