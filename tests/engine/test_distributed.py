"""Several processes: the same weights as one, and nobody left waiting when something dies."""

import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf


@pytest.mark.timeout(120)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_equal_one(tmp_path, tiny, forked, accumulation):
    def run(name, processes, accumulation):
        settings = {**tiny.DEFAULTS, "output": str(tmp_path / name), "accumulation": accumulation}
        assert forked(lambda: tiny.train(OmegaConf.create(settings)), processes=processes) == [0] * processes

    run("one", 1, 1)
    run("two", 2, accumulation)
    one, first, second = (
        torch.load(tmp_path / f) for f in ("one/weights_0.pt", "two/weights_0.pt", "two/weights_1.pt")
    )
    for key in one:
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], one[key], atol=1e-6, rtol=0)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "two")]
    values = [[float(v) for v in re.findall(r'"train/loss": ([\d.e-]+)', log)] for log in logs]
    assert values[1] == pytest.approx(values[0], abs=1e-6)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_no_term_reaches_keeps_nobody_waiting(tmp_path, tiny, forked, accumulation):
    """Each process gives it a gradient of zero, as a single one does."""

    def work():
        model = tiny.TinyNet()
        model.idle = torch.nn.Linear(3, 2)
        before = model.idle.weight.detach().clone()
        optimizer = tiny.adamw(model, lr=1e-2, weight_decay=0.0)
        trainer = tiny.trainer(iterations=2, accumulation=accumulation, model=model, optimizer=optimizer)
        assert trainer.train()
        assert torch.equal(model.idle.weight, before) and len(optimizer.state[model.idle.weight]) == 3

    assert forked(work, processes=2) == [0, 0]


@pytest.mark.timeout(60)
def test_a_dead_data_worker_is_an_error(tiny):
    trainer = tiny.trainer(num_workers=1, kill_worker=True)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed by signal|exited unexpectedly)"):
        trainer.train()


@pytest.mark.timeout(60)
def test_a_signal_to_all_processes_finishes_the_step(tiny):
    """As Ctrl-C in a terminal, or scancel: data workers get it too and must not die of it."""

    class SignalAll:
        def before_train(self, trainer): ...
        def after_train(self, trainer): ...
        def after_step(self, trainer):
            if trainer.iteration == 3:
                for process in multiprocessing.active_children():
                    os.kill(process.pid, signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

    trainer = tiny.trainer(num_workers=2, iterations=1000, hooks=[SignalAll()])
    assert not trainer.train() and trainer.iteration == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_failing_rank_stops_all_and_is_named(tmp_path, start_tiny):
    process = start_tiny(output=tmp_path, launch__num_processes=2, fail_rank=1, iterations=100000)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "ChildProcessError: rank 1 failed, all processes were stopped: ValueError: made to fail" in output
    failed = (tmp_path / "alive_1").stat().st_mtime
    assert time.time() - failed < 60
    assert not alive(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_saves_on_all_ranks_and_asks_for_a_requeue(tmp_path, start_tiny):
    process = start_tiny(output=tmp_path, launch__num_processes=2, iterations=100000, every=100000)
    wait_for(tmp_path / "alive_1", process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 85, output
    saved = (tmp_path / "checkpoints" / "latest.pt").resolve().name
    steps = {int((tmp_path / f"alive_{rank}").read_text().split()[1]) for rank in range(2)}
    assert saved == f"iter_{steps.pop():07d}.pt" and not steps
    assert not alive(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_launcher_leaves_no_orphans(tmp_path, start_tiny):
    process = start_tiny(output=tmp_path, launch__num_processes=2, iterations=100000, num_workers=1)
    wait_for(tmp_path / "alive_1", process)
    pids = [int((tmp_path / f"alive_{rank}").read_text().split()[0]) for rank in range(2)]
    children = [int(c) for pid in pids for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(map(runs, pids + children)):
        time.sleep(0.5)
    assert not [pid for pid in pids + children if runs(pid)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_rank_stops_the_others(tmp_path, start_tiny):
    process = start_tiny(output=tmp_path, launch__num_processes=2, iterations=100000)
    wait_for(tmp_path / "alive_1", process)
    os.kill(int((tmp_path / "alive_1").read_text().split()[0]), signal.SIGKILL)
    started = time.monotonic()
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 1 and "rank 1 failed" in output and time.monotonic() - started < 60
    assert not alive(tmp_path)


def wait_for(path: Path, process) -> None:
    """Starting takes seconds, or a minute on a machine that is busy otherwise."""
    deadline = time.monotonic() + 300
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline and process.poll() is None, f"{process.args} did not start"
        time.sleep(0.2)
    time.sleep(0.5)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def alive(directory: Path) -> list[int]:
    return [pid for rank in range(2) if runs(pid := int((directory / f"alive_{rank}").read_text().split()[0]))]
