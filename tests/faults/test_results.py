"""A good results.json is replaced by a better one or not at all."""

import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from partseg.evaluation import results
from partseg.utils.config import compose


@pytest.fixture(scope="module")
def trained(tools, overrides, tmp_path_factory):
    """A short run."""
    folder = tmp_path_factory.mktemp("trained")
    short = ["train.iterations=2", "hooks.visualize=null"]
    assert tools("train_net").train(compose("train", [*overrides(folder), *short]))
    return folder / "run"


@pytest.fixture
def evaluated(tools, settings, trained, tmp_path):
    """Overrides of an evaluation of a copy of the run, done once."""
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    arguments = [
        *settings,
        f"ckpt={tmp_path / 'run'}",
        "eval.batch_size=1",
        "eval.num_workers=0",
        "save_predictions=true",
    ]
    tools("eval_net").evaluate(compose("eval", arguments))
    return arguments


def content(folder):
    """Results and predictions."""
    names = [folder / "results.json", *sorted((folder / "predictions").rglob("*.png"))]
    return {path: path.read_bytes() for path in names}


def test_a_killed_evaluation_leaves_the_earlier_one(tools, start, evaluated, tmp_path, patch_in, monkeypatch):
    tool, run = tools("eval_net"), tmp_path / "run"
    before = content(run)
    assert len(before) == 5
    with monkeypatch.context() as patched:
        calls = []

        def kill_at_the_third(*_):
            calls.append(None)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        patch_in(tool.PredictionWriter, "__call__", kill_at_the_third, monkeypatch=patched)
        assert start(tool.main, evaluated).wait() == -signal.SIGKILL
    assert content(run) == before
    assert start(tool.main, evaluated).wait() == 0
    assert content(run).keys() == before.keys() and not list(run.glob(".*"))


@pytest.mark.parametrize("mistake", ["eval.batch_size=0", "eval.limit_images=0", "predictor.prompts=some"])
def test_a_mistake_costs_no_results(tools, start, evaluated, tmp_path, mistake):
    before = content(tmp_path / "run")
    program = start(tools("eval_net").main, [*evaluated, mistake])
    assert program.wait() == 1 and program.output.splitlines()[-1].startswith("error: ")
    assert content(tmp_path / "run") == before


def test_a_missing_prediction_costs_no_scores(tools, start, evaluated, tmp_path):
    tool, folder = tools("score_predictions"), tmp_path / "run" / "predictions"
    arguments = [a for a in evaluated if not a.startswith(("ckpt=", "save_predictions="))] + [f"predictions={folder}"]
    assert start(tool.main, arguments).wait() == 0
    before = results.read(folder)
    missing = sorted(folder.rglob("*.png"))[-1]
    labels = np.asarray(Image.open(missing))
    missing.unlink()
    program = start(tool.main, arguments)
    assert program.wait() == 1 and missing.name in program.output.splitlines()[-1]
    assert results.read(folder) == before
    Image.fromarray(np.full_like(labels, 65535)).save(missing)
    assert start(tool.main, arguments).wait() == 0 and results.read(folder) != before
