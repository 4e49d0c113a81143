"""What the tools do when little is said: no training by accident, no frozen noise, the checkpoint's own data."""

import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from partseg.engine.build import build_model, check_start, chooses_data
from partseg.engine.run import plain
from partseg.evaluation import results
from partseg.utils.config import compose
from partseg.weights.load import LoadReport


def tool(root, name, *arguments, cwd, **environment):
    command = [sys.executable, str(root / "tools" / f"{name}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


def test_training_needs_a_choice(root, tmp_path):
    done = tool(root, "train_net", "train.iterations=5", cwd=tmp_path)
    assert done.returncode == 1 and "partseg train experiment=" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: nothing was chosen to train: give experiment=")
    assert not list(tmp_path.iterdir())


def test_missing_data_are_said_before_weights_are_fetched(load, tmp_path, monkeypatch):
    train_net = load("train_net")
    monkeypatch.setattr(train_net, "init_from", lambda *_: pytest.fail("weights were fetched"))
    config = compose("train", ["experiment=clipseg_pascal_part_116", f"data_root={tmp_path}/none"])
    with pytest.raises(FileNotFoundError, match="none"):
        train_net.train_in(tmp_path, cfg=config, state=None)


def report(*missing):
    return LoadReport("x", "x", (), missing, (), ())


def test_a_frozen_random_tower_is_refused():
    def check(*overrides, loaded=None):
        config = compose("train", ["model=part_clipseg_tiny", *overrides])
        check_start(
            build_model(config),
            plain(config.model),
            [] if loaded is None else [loaded],
            allow_random=config.allow_random,
        )

    frozen = "model.trainable=[adapter.*,decoder.*,pair.*]"
    check()  # everything trains
    with pytest.raises(ValueError, match=r"text tower \([\d,]+ weights\), image tower .*random and frozen.*init_from="):
        check(frozen)
    with pytest.raises(ValueError, match="^text tower"):
        check(
            "model.trainable=[adapter.*,decoder.*,pair.*,backbone.clip.visual.*]", "model.train_text_embeddings=false"
        )
    check(frozen, "allow_random=true")
    check(frozen, loaded=report("pair.text.weight"))  # which trains
    with pytest.raises(ValueError, match="decoder"):
        check("model.trainable=[pair.*]", loaded=report(*(f"decoder.reduces.{i}.weight" for i in range(3))))
    # a vector that stays at its random start is a choice of the authors
    check("model.train_background=false", "model.trainable=[adapter.*,decoder.*,pair.*]", loaded=report("background"))


def test_what_pretrained_names_is_not_random():
    config = compose("train", ["model=part_clipseg_tiny", "model.trainable=[adapter.*,decoder.*,pair.*]"])
    node = OmegaConf.to_container(config.model)
    node["backbone"]["pretrained"] = "openai"
    check_start(build_model(config), node, [], allow_random=False)


def test_evaluation_takes_the_checkpoints_own_data(root, toy_run, tmp_path):
    done = tool(
        *(root, "eval_net", f"ckpt={toy_run}", f"output={tmp_path / 'out'}", "launch.num_gpus=0", "eval.num_workers=0"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert results.read(tmp_path / "out")["dataset"]["name"] == "toy_pascal_part_116"


def test_an_export_reads_the_checkpoints_own_data(root, toy_run, tmp_path):
    arguments = (f"ckpt={toy_run}", "output=out", "launch.num_gpus=0", "eval.num_workers=0", "eval.limit_images=2")
    done = tool(root, "export_predictions", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "shard-00000.json").is_file() and "2 in all" in done.stdout


def test_what_chooses_data():
    words = ("dataset=x", "eval_dataset.root=x", "dataset@eval_dataset=x", "experiment=x", "debug=smoke")
    assert all(chooses_data([word]) for word in words) and not chooses_data(["ckpt=x", "eval.split=train"])


def test_plots_without_matplotlib_are_refused_first(root, toy_run, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    done = tool(root, "eval_net", f"ckpt={toy_run}", "plots=true", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{root}")
    assert done.returncode == 1 and "pip install matplotlib" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("debug", [False, True])
def test_one_line_or_a_traceback(root, toy_run, tmp_path, debug):
    more = ["partseg_debug=1"] if debug else []
    done = tool(root, "predict", f"ckpt={toy_run}", f"input={root}/docs/images", "device=cuda", *more, cwd=tmp_path)
    assert done.returncode != 0 and ("Traceback" in done.stderr) == debug
    assert "device=cuda cannot be used" in done.stderr
