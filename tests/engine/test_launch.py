"""How many processes, on what, and what is refused."""

import os

import pytest
import torch
from omegaconf import OmegaConf

from partseg.engine.launch import device_of, exit_for_requeue, launch, num_processes


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
