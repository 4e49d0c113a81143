"""How many processes, on what, and what is refused."""

import multiprocessing
import os
import re
import socket
import time
import warnings
from datetime import timedelta

import pytest
import torch
from omegaconf import OmegaConf

from partseg.engine.launch import _work, device_of, exit_for_requeue, launch, num_processes
from partseg.utils import distributed, whereabouts


@pytest.mark.parametrize(
    ("present", "num_gpus", "num_cpu", "expected"),
    [(0, None, 1, 1), (0, None, 3, 3), (0, 0, 2, 2), (4, None, 1, 1), (4, 4, 1, 4), (4, 0, 2, 2)],
)
def test_number_of_processes(monkeypatch, present, num_gpus, num_cpu, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    assert num_processes(num_gpus, num_cpu) == expected


def test_what_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"launch.num_gpus=2, but this machine has 1 usable GPU.*launch.num_gpus=0"):
        num_processes(2, 1)
    with pytest.raises(ValueError, match="launch.num_processes=2 is for the CPU"):
        num_processes(None, 2)


def test_one_process_runs_here():
    config = OmegaConf.create({"launch": {"num_gpus": 0, "num_processes": 1}})
    assert launch(lambda cfg: (os.getpid(), device_of(cfg).type), config) == (os.getpid(), "cpu")


def test_requeue_code():
    with pytest.raises(SystemExit) as exit_:
        exit_for_requeue()
    assert exit_.value.code == 85


@pytest.mark.parametrize("ends", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_an_error_of_a_wait_names_the_rank_that_did_not_come(monkeypatch, tmp_path, ends):
    monkeypatch.setattr(whereabouts, "BEAT", 0.05)
    if ends == "hangs":
        monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=15))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}

    def step(_cfg):
        places = ("loss counts of step 5", "data of step 5")
        distributed.at(places[distributed.rank()])
        distributed.barrier()
        time.sleep(0.5)  # ten beats
        if distributed.rank() == 1:
            time.sleep(60 if ends == "hangs" else 0)
            os._exit(1)
        distributed.reduce_sum(torch.ones(1))

    def work(rank):
        os.environ.update(group, RANK=str(rank), LOCAL_RANK=str(rank))
        torch.set_num_threads(1)
        try:
            _work(step, OmegaConf.create({"launch": {"num_gpus": 0, "num_processes": 1}}))
        except RuntimeError as error:
            (tmp_path / str(rank)).write_text(str(error))

    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns about forks of threaded processes
        processes = [context.Process(target=work, args=(rank,)) for rank in range(2)]
        for process in processes:
            process.start()
    processes[0].join(60)
    processes[1].kill()
    message = (tmp_path / "0").read_text()
    assert re.match(r"rank 0 has waited \d+ s in loss counts of step 5; rank 1 on \S+ is in data of step 5 ", message)
