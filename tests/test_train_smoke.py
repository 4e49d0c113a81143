"""The train tool from config to results, in this process, on the synthetic data: tiny model, three steps."""

import importlib.util
import json
import logging

import pytest
import torch

from partseg.engine.checkpoint import load, load_model
from partseg.evaluation import results
from partseg.utils.config import compose
from toy_world.writer import ToyOptions, write_toy


@pytest.fixture(scope="module")
def tool(root):
    """tools/train_net.py as a module."""
    spec = importlib.util.spec_from_file_location("partseg_train_net", root / "partseg" / "commands" / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """A few synthetic images in the layout of Pascal-Part-116."""
    folder = tmp_path_factory.mktemp("data")
    write_toy(folder / "ToyPascalPart116", ToyOptions(num_train=8, num_val=4, size=64))
    return folder


@pytest.fixture
def settings(data_root, tmp_path):
    """Overrides of the smallest run there is."""
    yield [
        "debug=smoke", f"data_root={data_root}", f"output_root={tmp_path}", "name=smoke", "launch.num_gpus=0",
        "model.image_size=64", "train.batch_size=2", "train.iterations=3", "hooks.log.every=1",
        "hooks.checkpoint.every=2", "hooks.evaluate.every=2", "hooks.visualize.every=2",
    ]  # fmt: skip
    log = logging.getLogger("partseg")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = True


@pytest.mark.parametrize("model", ["part_clipseg_tiny", "clipseg_tiny"])
def test_a_run_leaves_everything_a_user_needs(tool, settings, tmp_path, model):
    criterion = {"part_clipseg_tiny": "partclipseg", "clipseg_tiny": "clipseg"}[model]
    assert tool.train(compose("train", [*settings, f"model={model}", f"criterion={criterion}", "train.ema_decay=0.9"]))
    directory = tmp_path / "smoke"
    names = {p.name for p in directory.iterdir()}
    assert names >= {"config.yaml", "env.txt", "log.txt", "metrics.jsonl", "checkpoints", "pictures", "results.json"}
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    scored = [r["iteration"] for r in records if "oracle_obj/mIoU_harmonic" in r]
    assert scored == [2, 3] and [r["iteration"] for r in records if "train/loss" in r] == [1, 2, 3]
    best = json.loads((directory / "checkpoints" / "best.json").read_text())
    assert set(best) == {"oracle_obj/mIoU_harmonic", "pred_all/mIoU_harmonic"}
    assert all(entry["iteration"] in scored for entry in best.values())
    written = results.read(directory)
    assert results.is_of(directory, directory / "checkpoints" / "latest.pt") and written["checkpoint"]["iteration"] == 3
    assert written["protocols"]["oracle_obj"]["metrics"]["mIoU"] == records[-1]["oracle_obj/mIoU"]
    network, vocabulary, config = load_model(directory)
    assert config["name"] == "smoke" and vocabulary.name.endswith("/seen") and not network.training
    averaged = load(directory)["ema"]
    name = next(iter(averaged))
    assert torch.equal(dict(network.named_parameters())[name], averaged[name])


def test_the_same_command_does_nothing_more_once_complete(tool, settings, tmp_path):
    config = compose("train", [*settings, "train.iterations=1", "hooks.evaluate.every=100"])
    assert tool.train(config)
    before = (tmp_path / "smoke" / "checkpoints" / "latest.pt").resolve().stat().st_mtime_ns
    assert tool.train(config)
    assert (tmp_path / "smoke" / "checkpoints" / "latest.pt").resolve().stat().st_mtime_ns == before


def test_missing_data_says_what_to_do(tool, settings, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)data_root|datasets/README|prepare|toy_world"):
        tool.train(compose("train", [*settings, f"data_root={tmp_path / 'nowhere'}"]))


def test_a_batch_that_cannot_be_divided_is_refused(tool, settings):
    with pytest.raises(ValueError, match=r"batch_size=3 .*must be a multiple of processes x accumulation = 1 x 2"):
        tool.train(compose("train", [*settings, "train.batch_size=3", "train.accumulation=2"]))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_named(tool, settings, tmp_path, num_workers):
    root = tmp_path / "data" / "ToyPascalPart116"
    write_toy(root, ToyOptions(num_train=2, num_val=1, size=64))
    for path in (root / "images" / "train").iterdir():
        path.write_bytes(b"not an image")
    overrides = [*settings, f"data_root={tmp_path / 'data'}", f"train.num_workers={num_workers}"]
    with pytest.raises(Exception, match=r"toy_train_0000\d"):
        tool.train(compose("train", overrides))


def test_resuming_with_another_vocabulary_is_refused(tool, settings, tmp_path):
    tool.train(compose("train", [*settings, "train.iterations=1", "hooks.evaluate.every=100"]))
    with pytest.raises(ValueError, match=r"was trained on vocabulary .* init_from"):
        tool.train(compose("train", [*settings, "+dataset.all_seen=true"]))


def test_what_a_network_draws_follows_from_the_seed_of_the_run(tool, settings, monkeypatch):
    class Reached(Exception): ...

    def trainer(*_, seed, **__):
        raise Reached(f"seed {seed}")

    monkeypatch.setattr(tool, "Trainer", trainer)
    with pytest.raises(Reached, match="seed 5"):
        tool.train(compose("train", [*settings, "seed=5"]))
