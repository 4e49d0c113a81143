"""The train tool as a command: mistakes in one line, a sweep with one directory per run, two processes, a kill."""

import json
import os
import subprocess
import sys

import pytest

from partseg.engine.checkpoint import load
from toy_world.writer import ToyOptions, write_toy

SMALL = [
    "debug=smoke", "launch.num_gpus=0", "model.image_size=64", "train.batch_size=2", "train.iterations=2",
    "hooks.log.every=1", "hooks.checkpoint.every=1", "hooks.evaluate.every=2", "hooks.visualize.every=100",
]  # fmt: skip


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_toy(folder / "ToyPascalPart116", ToyOptions(num_train=4, num_val=2, size=64))
    return folder


@pytest.fixture
def train_net(root, tmp_path):
    """Runs the tool in `tmp_path` and returns the finished process."""

    def run(*arguments, timeout=300, **environment):
        command = [sys.executable, str(root / "tools" / "train_net.py"), *arguments]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=timeout)

    return run


def test_a_mistake_is_one_line(train_net):
    done = train_net("experiment=part_clipseg_pascal")
    assert done.returncode == 1 and "'part_clipseg_pascal_part_116'" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--config-file=my.yaml", "experiment="),
        ("--num-gpus", "launch.num_gpus=<N>"),
        ("--eval-only", "partseg eval ckpt="),
        ("--resume", "resume=auto"),
    ],
)
def test_flags_of_detectron2_are_answered_with_what_does_the_same(load, monkeypatch, flag, answer):
    monkeypatch.setattr(sys, "argv", ["train_net.py", flag, "8"])
    with pytest.raises(SystemExit, match=f"{flag.partition('=')[0]} is detectron2's, here it is .*{answer}"):
        load("train_net").main()


@pytest.mark.slow
def test_a_typo_and_a_sweep_inside_torchrun_are_one_line(train_net):
    assert "'train.iterations'" in train_net("train.iteration=5").stderr
    assert "launch.num_gpus=N" in train_net("-m", "seed=1,2", WORLD_SIZE="2").stderr


@pytest.mark.slow
def test_a_run_stays_in_its_directory(train_net, data_root, tmp_path):
    done = train_net(*SMALL, f"data_root={data_root}", "name=one")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"output"}
    assert {p.name for p in (tmp_path / "output").iterdir()} == {"one"}


@pytest.mark.slow
def test_a_sweep_has_one_directory_per_run(train_net, data_root, tmp_path):
    done = train_net("-m", *SMALL, f"data_root={data_root}", "seed=1,2", "hooks.evaluate.every=100")
    assert done.returncode == 0, done.stderr
    runs = [set(p.name.split("__")) for p in sorted((tmp_path / "output").iterdir()) if p.name != "sweeps"]
    assert len(runs) == 2 and "seed-1" in runs[0] and "seed-2" in runs[1]


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(train_net, data_root, tmp_path):
    states = []
    for name, extra in (("one", []), ("two", ["launch.num_processes=2"])):
        done = train_net(*SMALL, f"data_root={data_root}", f"name={name}", *extra)
        assert done.returncode == 0, done.stderr
        states.append(load(tmp_path / "output" / name)["model"])
    assert max((states[0][k].double() - states[1][k].double()).abs().max() for k in states[0]) < 1e-6


@pytest.mark.slow
def test_torchrun_shares_one_directory(root, data_root, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(root / "tools" / "train_net.py"), *SMALL, f"data_root={data_root}", "name=torchrun"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in (tmp_path / "output").iterdir()] == ["torchrun"]
    records = (tmp_path / "output" / "torchrun" / "metrics.jsonl").read_text().splitlines()
    assert sum("train/loss" in json.loads(line) for line in records) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("system", "processes"),
    [
        *(("part_clipseg", 1), ("part_clipseg", 2), ("clipseg", 1), ("cat_seg", 1), ("part_cat_seg", 1)),
        *(("vlpart", 1), ("ops", 1), ("cris", 1)),
    ],
)
@pytest.mark.usefixtures("processes_with_extras")
def test_a_compiled_run_ends_with_every_hook_on(train_net, data_root, tmp_path, system, processes):
    often = {"log": 1, "checkpoint": 2, "visualize": 2, "evaluate": 2}
    done = train_net(
        *(f"experiment=toy_{system}", "hooks=profile", "hooks.profile.start=1", "hooks.profile.steps=1"),
        *("train.compile=true", "train.iterations=4", "launch.num_gpus=0", f"launch.num_processes={processes}"),
        *(f"data_root={data_root}", "name=run", *(f"hooks.{hook}.every={every}" for hook, every in often.items())),
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "output" / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("train/loss" in record for record in records) == 4
    assert sum(any("/" in key and not key.startswith("train/") for key in record) for record in records) == 2
    assert (run / "pictures" / "iter_0000004.png").is_file() and (run / "profile" / "trace.json").is_file()


@pytest.mark.multi_gpu
def test_two_gpus_train_as_one(train_net, data_root, tmp_path):
    losses = []
    for count in (1, 2):
        done = train_net(
            *("experiment=toy_part_clipseg", "train.iterations=4", "hooks.log.every=1", "best.metrics=[]"),
            *(f"data_root={data_root}", f"name=on{count}", f"launch.num_gpus={count}"),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = (tmp_path / "output" / f"on{count}" / "metrics.jsonl").read_text().splitlines()
        losses.append([value for line in lines if (value := json.loads(line).get("train/loss")) is not None])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and len(losses[0]) == 4
