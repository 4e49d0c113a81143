"""Hooks: what is logged, when a checkpoint is written, which one is the best."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.engine.checkpoint import load
from partseg.engine.ema import Ema
from partseg.engine.hooks import CheckpointHook, EvalHook, LogHook, ProfileHook, VisualizeHook
from partseg.engine.run import outcome
from partseg.losses.criterion import NonFiniteLossError


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_log_reports_means_and_shares(tmp_path, tiny, run_of):
    every_step, every_second = tmp_path / "a", tmp_path / "b"
    for directory, every in ((every_step, 1), (every_second, 2)):
        tiny.trainer(iterations=5, hooks=[LogHook(run_of(directory, iterations=5), every=every)]).train()
    single, pairs = lines(every_step), lines(every_second)
    assert [line["iteration"] for line in pairs] == [2, 4, 5]
    assert pairs[0]["train/loss"] == pytest.approx((single[0]["train/loss"] + single[1]["train/loss"]) / 2)
    first = single[0]
    assert first["train/loss"] == pytest.approx(first["train/object_part"] + 0.5 * first["train/object"], rel=1e-5)
    assert 0 <= first["train/data_share"] <= 1 and first["train/lr"] == 1e-2 and first["train/grad_norm"] > 0
    assert first["train/images_per_second"] == pytest.approx(4 / first["train/seconds_per_step"])


def test_checkpoint_is_saved_when_due_and_at_the_end(tmp_path, tiny, run_of):
    tiny.trainer(iterations=5, hooks=[CheckpointHook(run_of(tmp_path), every=2)]).train()
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("iter_*")) == ["iter_0000004.pt", "iter_0000005.pt"]


def test_weights_after_a_bad_gradient_are_never_saved(tmp_path, tiny, run_of):
    class Break:
        def before_train(self, trainer): ...
        def after_train(self, trainer): ...
        def after_step(self, trainer):
            trainer.last.grad_norm.fill_(float("inf"))

    run = run_of(tmp_path)
    with pytest.raises(FloatingPointError, match="gradient norm is inf at iteration 1; nothing was saved"):
        tiny.trainer(iterations=3, hooks=[Break(), CheckpointHook(run, every=2)]).train()
    assert not run.checkpoints.latest.exists()


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint_intact(tmp_path, tiny, run_of):
    class Poison:
        def before_train(self, trainer): ...
        def after_train(self, trainer): ...
        def after_step(self, trainer):
            if trainer.iteration == 3:
                trainer.model.classes.weight.data.fill_(float("nan"))

    run = run_of(tmp_path)
    with pytest.raises(NonFiniteLossError, match=r"at iteration 3 \(object_part=nan.*images: \w+"):
        tiny.trainer(iterations=9, hooks=[CheckpointHook(run, every=2), Poison()]).train()
    state = load(run.checkpoints.latest)
    assert state["iteration"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())


def test_best_checkpoint_follows_the_named_metric(tmp_path, tiny, run_of):
    scores = iter([{"toy/score": 1.0, "toy/none": None}, {"toy/score": 3.0}, {"toy/score": 2.0}])
    run = run_of(tmp_path, evaluate=lambda model: next(scores))
    tiny.trainer(iterations=6, hooks=[CheckpointHook(run, every=3), EvalHook(run, every=2)]).train()
    assert run.checkpoints.best()["toy/score"]["iteration"] == 4  # saved for this purpose, no checkpoint was due
    assert lines(tmp_path)[0] == {"iteration": 2, "toy/score": 1.0}


def test_a_metric_that_is_not_scored_is_an_error(tmp_path, tiny, run_of):
    run = run_of(tmp_path, evaluate=lambda model: {"a/mIoU": 1.0})
    with pytest.raises(KeyError, match=r"best.metrics \['toy/score'\] are not among the scores \['a/mIoU'\]"):
        tiny.trainer(iterations=1, hooks=[EvalHook(run, every=1)]).train()


def test_a_metric_that_is_not_defined_is_said_and_keeps_no_best(tmp_path, tiny, run_of, caplog):
    run = run_of(tmp_path, evaluate=lambda model: {"toy/score": None})
    tiny.trainer(iterations=1, hooks=[EvalHook(run, every=1)]).train()
    assert "toy/score is not defined on this data" in caplog.text
    assert run.checkpoints.best() == {}


def test_without_unseen_classes_the_best_follows_the_mean(tmp_path, tiny, run_of, caplog):
    scores = iter([{"toy/mIoU": value, "toy/mIoU_harmonic": None} for value in (1.0, 3.0, 2.0)])
    run = run_of(tmp_path, evaluate=lambda model: next(scores))
    run.checkpoints.metrics = ["toy/mIoU_harmonic"]
    with caplog.at_level("INFO"):
        tiny.trainer(iterations=3, hooks=[EvalHook(run, every=1)]).train()
    assert run.checkpoints.best()["toy/mIoU_harmonic"]["iteration"] == 2
    assert "best toy/mIoU so far: 3 at" in caplog.text, "no mean is called a harmonic one"
    assert outcome(tmp_path, run.checkpoints.best()).startswith("best toy/mIoU 3.00 at 2")


def test_averaged_weights_are_the_ones_evaluated(tmp_path, tiny, run_of):
    seen = []
    model = tiny.TinyNet()
    run = run_of(tmp_path, evaluate=lambda m: seen.append(m.classes.weight.detach().clone()) or {"toy/score": 1.0})
    ema = Ema(model, decay=0.5)
    tiny.trainer(iterations=2, model=model, ema=ema, hooks=[EvalHook(run, every=2)]).train()
    assert torch.equal(seen[0], ema.module.classes.weight) and not torch.equal(seen[0], model.classes.weight)


def test_pictures_show_photo_truth_and_labels(tmp_path, tiny, run_of, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        Image.new("RGB", (tiny.SIZE, tiny.SIZE), (90, 120, 60)).save(f"{i}.jpg")
    run = run_of(tmp_path)
    tiny.trainer(iterations=2, hooks=[VisualizeHook(run, every=2, num_images=2)]).train()
    picture = np.asarray(Image.open(tmp_path / "pictures" / "iter_0000002.png"))
    assert picture.shape[0] >= 2 * tiny.SIZE and picture.shape[1] >= 3 * tiny.SIZE and picture.shape[2] == 3


def test_profile_writes_a_trace(tmp_path, tiny, run_of):
    tiny.trainer(iterations=4, hooks=[ProfileHook(run_of(tmp_path), start=1, steps=1)]).train()
    assert json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
