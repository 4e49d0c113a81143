"""Writers: whole lines, no lines from the future after a resume, offline wandb without login."""

import json
import logging

import numpy as np
import pytest
from omegaconf import OmegaConf

from partseg.engine.writers import (
    ConsoleWriter,
    JsonlWriter,
    TensorBoardWriter,
    WandbWriter,
    open_writers,
    score_lines,
    start_log,
)
from partseg.utils import distributed

TRAIN = {"train/loss": 0.5, "train/lr": 1e-4, "train/seconds_per_step": 0.5, "train/data_share": 0.02}


def test_console_line_is_one_line_and_in_the_log(tmp_path, capsys):
    start_log(tmp_path)
    writer = ConsoleWriter(tmp_path, start=0, iterations=100)
    writer.scalars(TRAIN, iteration=40)
    writer.scalars({"oracle_obj/mIoU": 12.345, "oracle_obj/pACC": 50.0}, iteration=40)
    writer.progress(41)
    writer.close()
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert log[0].endswith("40/100  loss 0.5  lr 0.0001  data 2%  left 0:00:30")
    assert log[1].endswith("40/100  oracle_obj      mIoU  12.35")
    assert log[0] in capsys.readouterr().out


@pytest.mark.parametrize("rank", [0, 1])
def test_other_ranks_only_warn(capsys, monkeypatch, rank):
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    start_log(None)
    logging.getLogger("partseg.weights.freeze").info("a table")
    logging.getLogger("partseg.data").warning("a warning")
    out = capsys.readouterr().out
    assert ("a table" in out) == (rank == 0) and "a warning" in out


def test_a_resumed_run_forgets_what_was_written_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"iteration": i, "a": i}) + "\n" for i in range(1, 8)) + '{"iteration": 8, "a"')
    writer = JsonlWriter(tmp_path, start=5, iterations=10)
    writer.scalars({"a": 6.5}, iteration=6)
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["a"] for line in lines] == [1, 2, 3, 4, 5, 6.5]


def test_writers_are_closed_after_an_error(tmp_path):
    nodes = OmegaConf.create({"jsonl": {"_target_": "partseg.engine.writers.JsonlWriter"}})
    with (
        pytest.raises(ValueError, match="broken"),
        open_writers(nodes, directory=tmp_path, start=0, iterations=1) as opened,
    ):
        raise ValueError("broken")
    assert opened[0].file.closed


@pytest.mark.slow
def test_tensorboard_files_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    writer = TensorBoardWriter(tmp_path, start=0, iterations=1)
    writer.scalars({"train/loss": 0.5}, iteration=1)
    writer.image("pictures", np.zeros((4, 4, 3), np.uint8), iteration=1)
    writer.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.slow
def test_wandb_without_login_goes_offline_with_one_line_and_keeps_its_id(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    start_log(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    ids = []
    for start in (0, 5):
        writer = WandbWriter(tmp_path, start=start, iterations=10)
        writer.scalars({"train/loss": 0.5}, iteration=start + 1)
        writer.image("pictures", np.zeros((4, 4, 3), np.uint8), iteration=start + 1)
        ids.append(writer.run.id)
        writer.close()
    assert ids[0] == ids[1] == (tmp_path / "wandb_run_id.txt").read_text()
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert len(log) == 2 and all("wandb: not logged in, writing offline" in line for line in log)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_an_evaluation_is_one_aligned_line_per_protocol():
    lines = score_lines(
        {
            "oracle_obj/mIoU": 50.0, "oracle_obj/mIoU_seen": 60.0, "oracle_obj/mIoU_unseen": 7.5,
            "oracle_obj/pACC": 9.0,
            "pred_all/mIoU": 5.0, "pred_all/mIoU_seen": 6.0, "pred_all/IoU/dog's head": 1.0, "instances/AP": 3.0,
            "train/loss": 1.0,
        }
    )  # fmt: skip
    assert lines == [
        "oracle_obj      mIoU  50.00      seen  60.00    unseen   7.50",
        "pred_all        mIoU   5.00      seen   6.00",
        "instances         AP   3.00",
    ]
