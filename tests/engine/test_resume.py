"""A killed run continues as if nothing had happened: weights and losses equal bit for bit."""

import json
import signal

import pytest
import torch
from omegaconf import OmegaConf

from partseg.engine.checkpoint import load


def losses(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return {record["iteration"]: record["train/loss"] for record in map(json.loads, lines)}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_kill_during_a_save_then_resume_is_bit_identical(tmp_path, tiny, forked, num_workers):
    def run(name, **options):
        settings = {**tiny.DEFAULTS, "output": str(tmp_path / name), "num_workers": num_workers, **options}
        return forked(lambda: tiny.train(OmegaConf.create(settings)))

    assert run("whole") == [0]
    # iteration 5 is on the disk; the process dies in the middle of writing iteration 10 ...
    assert run("killed", kill_in_save=10) == [-signal.SIGKILL]
    killed = tmp_path / "killed"
    assert load(killed)["iteration"] == 5
    assert not (killed / "checkpoints" / "iter_0000010.pt").exists()
    assert len(losses(killed)) == 10
    # ... and the same command continues from there
    assert run("killed") == [0]
    assert losses(killed) == losses(tmp_path / "whole")
    weights = [torch.load(tmp_path / name / "weights_0.pt") for name in ("whole", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    optimizers = [load(tmp_path / name)["optimizer"]["state"] for name in ("whole", "killed")]
    assert all(
        torch.equal(optimizers[0][i][key], optimizers[1][i][key]) for i in optimizers[0] for key in optimizers[0][i]
    )
    assert not list((killed / "checkpoints").glob(".*part"))


@pytest.mark.parametrize("num_workers", [2])
def test_workers_change_nothing(tmp_path, tiny, forked, num_workers):
    for workers in (0, num_workers):
        settings = {**tiny.DEFAULTS, "output": str(tmp_path / str(workers)), "num_workers": workers}
        assert forked(lambda settings=settings: tiny.train(OmegaConf.create(settings))) == [0]
    assert losses(tmp_path / "0") == losses(tmp_path / str(num_workers))
