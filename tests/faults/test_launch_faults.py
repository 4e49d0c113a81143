"""What goes wrong around the steps: a stale environment, an unreadable file, a signal before the first step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from partseg.engine.launch import launch
from toy_world.writer import ToyOptions, write_toy

ROOT = Path(__file__).parents[2]
GROUP = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in GROUP:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def damaged(settings, tmp_path) -> tuple[list[str], str]:
    """Overrides of a run with two data workers in which one image cannot be read, and that image's name."""
    root = tmp_path / "damaged" / "ToyPascalPart116"
    write_toy(root, ToyOptions(num_train=8, num_val=2, size=64))
    image = sorted((root / "images" / "train").iterdir())[3]
    image.write_bytes(b"not an image")
    return [*settings, f"data_root={tmp_path / 'damaged'}", "train.num_workers=2"], image.name


def config(**launch_settings: int):
    return OmegaConf.create({"launch": {"num_gpus": 0, "num_processes": 1, **launch_settings}})


@pytest.mark.parametrize(
    "stale",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "1"},
        {"WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
        {"WORLD_SIZE": "1", "LOCAL_RANK": "3"},
        {"WORLD_SIZE": "two"},
    ],
)
def test_an_environment_left_over_from_another_job_is_refused_at_once(train_net, start, settings, monkeypatch, stale):
    for name, value in stale.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    program = start(train_net.main, settings)
    assert program.wait() == 1 and time.monotonic() - started < 30
    assert program.output.count("\n") == 1
    assert program.output.startswith("error: the environment says ") and "unset WORLD_SIZE" in program.output


def test_torchrun_and_the_settings_must_agree(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="launch.num_processes=2, but torchrun started 1 on this machine"):
        launch(lambda cfg: cfg, config(num_processes=2))
    assert launch(lambda cfg: "ran", config()) == "ran"


@pytest.mark.slow
def test_one_process_in_the_environment_does_not_make_one_of_two(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "tests" / "engine" / "tiny.py"),
        f"output={tmp_path}",
        "launch.num_processes=2",
    ]
    environment = {**os.environ, "WORLD_SIZE": "1", "RANK": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "iterations=2"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("weights_*")) == ["weights_0.pt", "weights_1.pt"]


def test_an_error_in_a_data_worker_is_the_last_thing_seen(train_net, start, damaged, tmp_path):
    arguments, image = damaged
    program = start(train_net.main, arguments)
    assert program.wait() == 1
    assert "killed by signal" not in program.output and "Traceback" not in program.output
    last = program.output.splitlines()[-1]
    assert last.startswith("error: cannot read ") and image in last
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"stopped by {last.replace('error', 'ValueError', 1)}" in log and "Traceback" in log


def test_a_whole_traceback_can_be_asked_for(train_net, start, settings, monkeypatch):
    monkeypatch.setenv("PARTSEG_DEBUG", "1")
    program = start(train_net.main, [*settings, "data_root=nowhere"])
    assert program.wait() == 1 and "Traceback" in program.output and "FileNotFoundError" in program.output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_error_in_a_data_worker_ends_all_processes(damaged):
    """Processes of a group wait for their data workers at the end, and those ignore SIGTERM."""
    arguments, image = damaged
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), *arguments, "launch.num_processes=2"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (
        len(errors) == 1 and "all processes were stopped: ValueError: cannot read " in errors[0] and image in errors[0]
    )
    assert "killed by signal" not in done.stderr


def test_sigterm_before_the_first_step_asks_for_a_requeue(train_net, start, settings, tmp_path, patch_in):
    patch_in(train_net, "Trainer", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    program = start(train_net.main, settings)
    assert program.wait() == 85, program.output
    assert not (tmp_path / "run" / "lock.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_before_the_first_step_of_two_processes(settings, tmp_path, wait_for):
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), *settings, "launch.num_processes=2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for((tmp_path / "run" / "lock.json").exists, seconds=200)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 85, output
    assert not (tmp_path / "run" / "lock.json").exists()
