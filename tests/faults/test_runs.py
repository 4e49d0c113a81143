"""A run that was stopped, killed, copied or started twice ends as if nothing had happened, or says why not."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from partseg.engine.checkpoint import load, load_model
from partseg.engine.writers import JsonlWriter
from partseg.evaluation import runner
from partseg.utils.config import compose


@pytest.fixture(scope="module")
def whole(tools, overrides, tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)  # as in the programs that are compared with it: sums of two threads round otherwise
    assert tools("train_net").train(compose("train", overrides(folder)))
    return folder / "run"


@pytest.fixture
def run(tmp_path):
    """Directory of the run of `settings`."""
    return tmp_path / "run"


@pytest.fixture
def finished(whole, run):
    """A copy of the finished run, links as links."""
    return shutil.copytree(whole, run, symlinks=True)


def evaluations(lines):
    return [line["iteration"] for line in lines if "oracle_obj/mIoU" in line]


def test_a_stop_in_the_last_step_owes_the_last_evaluation(
    train_net, start, settings, run, whole, patch_in, state_of, monkeypatch
):
    with monkeypatch.context() as patched:
        step = train_net.Trainer.step

        def interrupted(self, batches):
            if self.iteration == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, batches)

        patched.setattr(train_net.Trainer, "step", interrupted)
        stopped = start(train_net.main, settings)
        assert stopped.wait() == 85, stopped.output
    assert load(run)["iteration"] == 6
    assert state_of(run) != state_of(whole)
    assert start(train_net.main, settings).wait() == 0
    assert state_of(run) == state_of(whole)


def killed_at(count):
    """An action that kills the process when it is called for the `count`-th time."""
    calls = []

    def act(*_, **__):
        calls.append(None)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


@pytest.mark.parametrize(
    ("count", "moment"),
    [(1, "before"), pytest.param(2, "after", marks=pytest.mark.slow), (3, "in the report")],
)
def test_an_evaluation_that_a_kill_took_comes_first(
    train_net, start, settings, run, whole, patch_in, state_of, records, monkeypatch, moment, count
):
    """At iteration 2, 4 or 6, each of which has a checkpoint before its evaluation."""
    act = killed_at(count)

    def in_the_report(self, values, *, iteration):
        if "oracle_obj/mIoU" in values:
            act()

    with monkeypatch.context() as patched:
        if moment == "in the report":
            patch_in(JsonlWriter, "scalars", in_the_report, monkeypatch=patched)
        else:
            patch_in(runner, "run", act, after=moment == "after", monkeypatch=patched)
        killed = start(train_net.main, settings)
        assert killed.wait() == -signal.SIGKILL, killed.output
    assert load(run)["iteration"] == 2 * count and evaluations(records(run)) == [2, 4, 6][: count - 1]
    assert start(train_net.main, settings).wait() == 0
    assert evaluations(records(run)) == [2, 4, 6]
    assert state_of(run) == state_of(whole)


def test_a_finished_run_is_left_as_it_is(train_net, settings, finished, state_of, whole):
    before = {path: path.stat().st_mtime_ns for path in (finished / "checkpoints").glob("iter_*")}
    assert train_net.train(compose("train", settings))
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "checkpoints").glob("iter_*")}
    assert state_of(finished) == state_of(whole)


def test_links_follow_best_json(train_net, settings, finished, state_of, whole):
    """As a kill between best.json and its links leaves them."""
    link = finished / "checkpoints" / "best_oracle_obj.pt"
    other = next(p for p in (finished / "checkpoints").glob("iter_*") if p.name != str(link.readlink()))
    link.unlink()
    link.symlink_to(other.name)
    assert train_net.train(compose("train", settings))
    assert state_of(finished) == state_of(whole)


@pytest.mark.parametrize("copy", ["without links", "files for links", "dangling link", "only latest and best as files"])
def test_a_copied_run_goes_on_where_it_was(train_net, settings, run, whole, state_of, records, copy):
    shutil.copytree(whole, run, symlinks=copy == "dangling link")
    folder = run / "checkpoints"
    for path in list(folder.iterdir()):
        if (copy == "without links" and path.name in ("latest.pt", "best_oracle_obj.pt")) or (
            copy == "only latest and best as files" and path.name.startswith("iter_")
        ):
            path.unlink()
    if copy == "dangling link":
        (folder / "latest.pt").unlink()
        (folder / "latest.pt").symlink_to("iter_0000099.pt")
    longer = [s for s in settings if "iterations" not in s]
    assert train_net.train(compose("train", [*longer, "train.iterations=8", "schedule=constant"]))
    assert [r["iteration"] for r in records(run) if "train/loss" in r] == list(range(1, 9))
    assert evaluations(records(run)) == [2, 4, 6, 8]
    best = json.loads((folder / "best.json").read_text())["oracle_obj/mIoU"]
    assert str((folder / "best_oracle_obj.pt").readlink()) == best["file"]
    assert load(folder / "best_oracle_obj.pt")["iteration"] == best["iteration"]
    assert str((folder / "latest.pt").readlink()) == "iter_0000008.pt"


@pytest.mark.parametrize("links", [True, False])
def test_never_means_never(train_net, settings, finished, state_of, whole, links):
    if not links:
        for path in (finished / "checkpoints").iterdir():
            if path.is_symlink():
                path.unlink()
    with pytest.raises(ValueError, match="holds a run already and resume=never"):
        train_net.train(compose("train", [*settings, "resume=never"]))
    assert {p.name for p in finished.iterdir()} == {p.name for p in whole.iterdir()}


def test_a_best_checkpoint_of_iterations_to_come_is_forgotten(train_net, settings, finished, records):
    """Who goes back by deleting the last checkpoints trains them again, and must not keep the old one's score."""
    folder = finished / "checkpoints"
    record = json.loads((folder / "best.json").read_text())
    record["oracle_obj/mIoU"] |= {"value": 99.0, "iteration": 6, "file": "iter_0000006.pt"}
    (folder / "best.json").write_text(json.dumps(record))
    (folder / "iter_0000006.pt").unlink()
    assert train_net.train(compose("train", settings))
    scores = {r["iteration"]: r["oracle_obj/mIoU"] for r in records(finished) if "oracle_obj/mIoU" in r}
    best = json.loads((folder / "best.json").read_text())["oracle_obj/mIoU"]
    assert best["value"] == scores[best["iteration"]] < 99.0


def test_a_picture_that_a_kill_took_is_drawn(train_net, settings, finished, state_of, whole):
    (finished / "pictures" / "iter_0000006.png").unlink()
    assert train_net.train(compose("train", settings))
    assert state_of(finished) == state_of(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("+dataset.all_seen=true", "was trained on vocabulary"),
        ("model.decoder.width=32", "does not fit this run's model"),
        ("model.trainable=['decoder.*']", "does not fit this run's model or optimizer"),
    ],
)
def test_a_resume_that_is_refused_changes_nothing(train_net, settings, finished, change, message):
    def content():
        return {
            p: (p.read_bytes(), p.stat().st_mtime_ns)
            for p in finished.rglob("*")
            if p.is_file() and p.name != "log.txt"
        }

    before = content()
    with pytest.raises(ValueError, match=message) as error:
        train_net.train(compose("train", [*settings, change]))
    assert "\n" not in str(error.value) and content() == before
    assert "stopped by ValueError" in (finished / "log.txt").read_text()


def test_two_runs_in_one_folder_are_refused(train_net, start, settings, run, state_of, whole, wait_for, patch_in):
    release = run.parent / "go"
    patch_in(runner, "run", lambda *_, **__: wait_for(release.exists))
    first = start(train_net.main, settings)
    wait_for((run / "metrics.jsonl").exists)
    second = start(train_net.main, settings)
    assert second.wait() == 1
    held = f"error: {run} is in use by process {first.process.pid} on {socket.gethostname()}: wait for it, stop it"
    assert second.output.startswith(held) and second.output.count("\n") == 1
    release.touch()
    assert first.wait() == 0, first.output
    assert state_of(run) == state_of(whole) | {"names": state_of(run)["names"]}
    assert not (run / "lock.json").exists()


def test_the_lock_of_a_dead_process_is_taken_over(train_net, settings, run):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run.mkdir()
    (run / "lock.json").write_text(json.dumps({"host": socket.gethostname(), "pid": process.pid, "started": "1"}))
    assert train_net.train(compose("train", [*settings, "train.iterations=1"]))
    assert f'left by a process that is dead ({{"host": "{socket.gethostname()}"' in (run / "log.txt").read_text()
    assert not (run / "lock.json").exists()


def test_a_number_used_again_is_not_the_dead_process(train_net, settings, run):
    run.mkdir()
    (run / "lock.json").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "started": "1"}))
    assert train_net.train(compose("train", [*settings, "train.iterations=1"]))


def test_a_killed_process_that_nobody_waited_for_is_dead(train_net, start, settings, run, wait_for):
    first = start(train_net.main, settings)
    wait_for((run / "metrics.jsonl").exists)
    first.kill()
    time.sleep(0.2)  # it is a zombie now: `wait` comes after the second run
    second = start(train_net.main, settings)
    assert second.wait() == 0, second.output
    assert first.wait() == -signal.SIGKILL


def test_the_lock_of_another_host_names_the_file_to_delete(train_net, settings, run):
    run.mkdir()
    lock = run / "lock.json"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    with pytest.raises(ValueError, match=rf"in use by process 1 on elsewhere: .*delete {lock} if that job is dead"):
        train_net.train(compose("train", settings))
    assert lock.exists() and not (run / "config.yaml").exists()


def test_the_lock_is_given_back_after_an_error(train_net, settings, run):
    with pytest.raises(FileNotFoundError):
        train_net.train(compose("train", [*settings, "data_root=nowhere"]))
    assert not (run / "lock.json").exists()


@pytest.mark.parametrize(
    ("saver", "averaged"),  # the evaluation saves what may be the best
    [
        ("checkpoint", True),
        ("evaluate", False),
        pytest.param("checkpoint", False, marks=pytest.mark.slow),
        pytest.param("evaluate", True, marks=pytest.mark.slow),
    ],
)
def test_weights_that_break_in_the_last_step_are_not_saved(train_net, settings, run, patch_in, averaged, saver):
    other = {"checkpoint": "evaluate", "evaluate": "checkpoint"}[saver]

    def spoil(self, batches):
        if self.iteration == 5:
            weights = dict((self.ema.module if averaged else self.model).named_parameters())
            next(w for name, w in weights.items() if name.startswith("decoder")).data.view(-1)[0] = float("nan")

    patch_in(train_net.Trainer, "step", spoil, after=True)
    with pytest.raises(FloatingPointError, match=r"weights are not finite after iteration 5 \((average of )?decoder"):
        train_net.train(compose("train", [*settings, f"hooks.{other}=null"]))
    assert load(run)["iteration"] == 4 and all(w.isfinite().all() for w in load_model(run)[0].parameters())


def test_gradients_that_break_are_noticed_when_they_are_logged(train_net, settings, run, monkeypatch):
    """Without clipping they stay in one weight, which no loss may read for long; other hooks come later here."""
    clip = torch.nn.utils.clip_grad_norm_
    calls = []

    def spoiled(parameters, max_norm):
        norm = clip(parameters, max_norm)
        calls.append(norm)
        return norm * float("inf") if len(calls) == 2 else norm

    monkeypatch.setattr("partseg.engine.trainer.clip_grad_norm_", spoiled)
    changes = ["hooks.log.every=3", "hooks.checkpoint.every=100", "hooks.evaluate.every=100", "train.clip_norm=null"]
    changes += ["hooks.visualize=null"]
    with pytest.raises(
        FloatingPointError, match="gradient norm is inf at one of the iterations 0 to 2; nothing was saved"
    ):
        train_net.train(compose("train", [*settings, *changes]))
    assert len(calls) == 3 and not list((run / "checkpoints").glob("*.pt"))
