"""Run directories: which one, what it continues, what changed."""

import json
import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from partseg.engine import run
from partseg.engine.checkpoint import Checkpoints, digest, load
from partseg.engine.hooks import LogHook
from partseg.engine.optim import adamw
from partseg.engine.run import banner, differences, farewell, outcome, write_settings
from partseg.utils import distributed


def open_run(config):
    """What a run gets, and gives back at once."""
    with run.open_run(config) as opened:
        return opened


@pytest.fixture
def config(tmp_path):
    settings = {"output_root": str(tmp_path / "output"), "name": "x", "resume": "auto", "optimizer": {"lr": 0.1}}
    return OmegaConf.create(settings)


@pytest.fixture
def finished(tmp_path, tiny, config, run_of):
    """A run with a checkpoint at iteration 7."""
    directory = tmp_path / "output" / "x"
    run, model = run_of(directory), tiny.TinyNet()
    optimizer = adamw(model, lr=0.1, weight_decay=0.0)
    run.checkpoints.config = OmegaConf.to_container(config)
    run.checkpoints.save(model, optimizer=optimizer, iteration=7, vocabulary=tiny.vocabulary())
    return directory


def test_a_new_run_says_what_it_is(config, tmp_path):
    with run.open_run(config) as (directory, state):
        assert directory == tmp_path / "output" / "x" and state is None
        assert sorted(p.name for p in directory.iterdir()) == ["lock.json", "log.txt"]
        write_settings(config, directory)
    assert sorted(p.name for p in directory.iterdir()) == ["config.yaml", "env.txt", "log.txt"]


def test_auto_continues_and_reports_what_changed(config, finished):
    config.optimizer.lr = 0.2
    directory, state = open_run(config)
    assert directory == finished and state["iteration"] == 7
    log = (directory / "log.txt").read_text()
    assert "continuing" in log and "optimizer.lr was 0.1, is now 0.2" in log


def test_never_does_not_overwrite(config, finished):
    config.resume = "never"
    with pytest.raises(ValueError, match="holds a run already and resume=never"):
        open_run(config)
    config.name = "y"
    assert open_run(config)[1] is None


def test_all_ranks_stop_when_rank_0_does(config, forked):
    """Another host's lock, which rank 0 alone reads: the others would wait half an hour for what it decides."""
    directory = Path(config.output_root) / config.name
    directory.mkdir(parents=True)
    (directory / "lock.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))

    def refused():
        with pytest.raises(ValueError, match="in use by process 1 on elsewhere"):
            open_run(config)

    assert forked(refused, processes=2) == [0, 0]
    (directory / "lock.json").write_text("half of it")
    assert forked(lambda: open_run(config), processes=2) == [0, 0]


def test_a_directory_is_continued_under_any_name(config, finished):
    config.name, config.resume = "other", str(finished)
    directory, state = open_run(config)
    assert directory == finished and state["iteration"] == 7
    config.resume = str(finished / "checkpoints" / "latest.pt")
    with pytest.raises(ValueError, match="is a file; give the run's directory"):
        open_run(config)
    config.resume = str(finished / "nowhere")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        open_run(config)


def test_differences_name_added_and_removed_keys():
    old, new = {"a": {"b": 1, "c": 2}, "name": "x"}, {"a": {"b": 3}, "name": "y", "d": None}
    assert differences(old, new) == ["a.b was 1, is now 3", "a.c was 2, is now 'absent'", "d was 'absent', is now None"]
    assert differences(old, old) == []


def test_machines_that_see_different_checkpoints_stop_together(config, finished, forked, tmp_path, tiny, run_of):
    """No common output_root: rank 1's folder has another iteration, then none; all say which folders."""

    def refused(match, prepare):
        def function():
            own = Path(f"{finished}_{distributed.rank()}")
            if distributed.rank() == 1:
                prepare(own)
            with pytest.MonkeyPatch.context() as patch:  # each machine has a disk of its own below the same path
                patch.setattr(run, "load", lambda path: load(own / Path(path).relative_to(finished)))
                patch.setattr(run, "digest", lambda path: digest(own / Path(path).relative_to(finished)))
                with pytest.raises(ValueError, match=match):
                    open_run(config)

        return function

    def other_iteration(own):
        model = tiny.TinyNet()
        optimizer = adamw(model, lr=0.1, weight_decay=0.0)
        checkpoints = Checkpoints(own / "checkpoints", config={})
        checkpoints.save(model, optimizer=optimizer, iteration=4, vocabulary=tiny.vocabulary())

    for rank in range(2):
        shutil.copytree(finished, f"{finished}_{rank}", symlinks=True)
    assert forked(
        refused("iteration 7.*iteration 4.*output_root must be one folder", other_iteration), processes=2
    ) == [0, 0]
    assert forked(
        refused("iteration 7.*no checkpoint at.*output_root", lambda own: shutil.rmtree(own)), processes=2
    ) == [0, 0]


def test_processes_that_see_the_same_checkpoint_go_on(config, finished, forked):
    def continued():
        assert open_run(config)[1]["iteration"] == 7

    assert forked(continued, processes=2) == [0, 0]


def test_processes_with_other_settings_stop_together(config, forked):
    def refused():
        config.optimizer.lr = 0.1 + distributed.rank()
        with pytest.raises(
            ValueError, match="rank 1 was started with other settings .*optimizer.lr was 0.1, is now 1.1"
        ):
            open_run(config)

    assert forked(refused, processes=2) == [0, 0]


def test_stages_of_the_start_are_logged_with_their_time(config):
    """The first of them is what came before the log: imports, and processes that find each other."""
    with run.open_run(config) as (directory, _):
        with run.stage("network"):
            pass
        first, second = (directory / "log.txt").read_text().splitlines()
    assert float(re.search(r"start: 1 processes, (\d+\.\d) s after the command$", first)[1]) > 0
    assert second.endswith("start: network, 0.0 s")


def test_a_run_says_what_it_is_and_how_it_ended(tiny, tmp_path):
    trainer = tiny.trainer(iterations=7)
    text = banner(trainer, tmp_path, train_set=tiny.dataset(), val_set=tiny.dataset(6), start=0)
    assert str(tmp_path) in text and "20 training and 6 train images" in text and "5 trained object-parts" in text
    assert "steps    7, each of 1" in text and "of TinyNet" in text
    assert "steps    3 to 7" in banner(trainer, tmp_path, train_set=tiny.dataset(), val_set=tiny.dataset(6), start=3)
    assert "the same command goes on" in farewell(tmp_path, iteration=3, complete=False, best={})
    end = farewell(tmp_path, iteration=7, complete=True, best={"a/mIoU": {"value": 12.3456, "iteration": 5}})
    assert "best a/mIoU 12.35 at 5" in end and f"partseg eval ckpt={tmp_path}" in end
    assert "results.json" not in end
    (tmp_path / "results.json").touch()
    assert outcome(tmp_path, {}) == str(tmp_path / "results.json")


def test_the_first_step_is_logged_with_its_time(tiny, run_of, tmp_path, caplog):
    run = run_of(tmp_path / "run")
    with caplog.at_level("INFO", logger="partseg"):
        tiny.trainer(start=3, iterations=5, hooks=[LogHook(run, every=10)]).train(3)
    lines = [record.getMessage() for record in caplog.records if "first step" in record.getMessage()]
    assert len(lines) == 1 and re.fullmatch(r"start: first step, \d+\.\d s, \d+\.\d of it for data", lines[0])
