"""1, 2 and 3 real processes count the same integers, although five images do not divide evenly."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("ranks_worker.py")


def start(output: Path, world_size: int) -> list[subprocess.Popen]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(WORKER), str(output)]
    return [
        subprocess.Popen(command, env=shared | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_processes_counts_the_same_integers(tmp_path, world_size):
    ranks = start(tmp_path / "counts.npz", world_size)
    spec = importlib.util.spec_from_file_location("ranks_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    expected = worker.count()
    for process in ranks:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    found = np.load(tmp_path / "counts.npz")
    assert expected["pred_all/confusion"].sum() > 500
    assert expected["num_images"] == 5
    assert set(found.files) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=f"{key} with {world_size} processes")
