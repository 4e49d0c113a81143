"""Checkpoints: whole or absent, last k and the best kept, refused where they do not fit."""

import json
from pathlib import Path

import pytest
import torch

from partseg.engine import checkpoint
from partseg.engine.checkpoint import Checkpoints, load, load_model, resolve, restore
from partseg.engine.ema import Ema
from partseg.engine.optim import adamw
from partseg.engine.run import plain
from partseg.utils.config import compose, instantiate
from partseg.vocabulary.names import Vocabulary


@pytest.fixture
def parts(tiny):
    model = tiny.TinyNet()
    return {"model": model, "optimizer": adamw(model, lr=1e-3, weight_decay=0.0), "vocabulary": tiny.vocabulary()}


def save(checkpoints: Checkpoints, parts, iteration: int, **extra) -> Path:
    model = parts["model"]
    return checkpoints.save(
        model, optimizer=parts["optimizer"], iteration=iteration, vocabulary=parts["vocabulary"], **extra
    )


def test_what_is_saved_comes_back(tmp_path, tiny, parts):
    checkpoints = Checkpoints(tmp_path / "checkpoints", config={"model": {"width": 8}})
    ema = Ema(parts["model"], decay=0.9)
    tiny.trainer(iterations=2, model=parts["model"], optimizer=parts["optimizer"], ema=ema).train()
    save(checkpoints, parts, 2, ema=ema)
    for path in (tmp_path, tmp_path / "checkpoints", checkpoints.latest, checkpoints.path(2)):
        state = load(path)
        keys = {"format", "iteration", "model", "optimizer", "config", "vocabulary", "synthetic", "ema", "trained"}
        assert set(state) == keys
    model = tiny.TinyNet()
    other = {"model": model, "optimizer": adamw(model, lr=5e-4, weight_decay=0.1), "vocabulary": parts["vocabulary"]}
    assert restore(state, **other, ema=Ema(model, decay=0.9)) == 2
    for name, value in parts["model"].state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    # moments come from the file, hyper-parameters from the run
    group = other["optimizer"].param_groups[0]
    assert (group["initial_lr"], group["weight_decay"]) == (5e-4, 0.1)
    moments = [optimizer.state[p]["exp_avg"] for optimizer, p in both(parts, other)]
    assert torch.equal(*moments)
    assert state["config"] == {"model": {"width": 8}}


def both(parts, other):
    return [(each["optimizer"], each["model"].classes.weight) for each in (parts, other)]


def test_the_last_k_and_the_best_of_each_metric_stay(tmp_path, parts):
    oracle, pred_all = "oracle_obj/mIoU_harmonic", "pred_all/mIoU_harmonic"
    checkpoints = Checkpoints(tmp_path, config={}, keep=2, metrics=[oracle, pred_all])
    scores = {1: (10.0, 5.0), 2: (30.0, 1.0), 3: (20.0, 9.0), 4: (30.0, 9.0), 5: (25.0, 8.0), 6: (0.0, 0.0)}
    taken = []
    for iteration, (first, second) in scores.items():
        path = save(checkpoints, parts, iteration)
        taken.append(checkpoints.offer_best(path, iteration=iteration, scores={oracle: first, pred_all: second}))
    assert taken == [[oracle, pred_all], [oracle], [pred_all], [], [], []]
    links = {p.name: str(p.readlink()) for p in tmp_path.iterdir() if p.is_symlink()}
    assert links == {
        "latest.pt": "iter_0000006.pt",
        "best_oracle_obj.pt": "iter_0000002.pt",
        "best_pred_all.pt": "iter_0000003.pt",
    }
    kept = sorted(p.name for p in tmp_path.glob("iter_*"))
    assert kept == [f"iter_000000{i}.pt" for i in (2, 3, 5, 6)]
    assert json.loads((tmp_path / "best.json").read_text()) == {
        oracle: {"value": 30.0, "score": oracle, "iteration": 2, "file": "iter_0000002.pt"},
        pred_all: {"value": 9.0, "score": pred_all, "iteration": 3, "file": "iter_0000003.pt"},
    }
    other = Checkpoints(tmp_path, config={}, keep=2, metrics=["pred_all/mIoU"])
    assert other.offer_best(checkpoints.path(6), iteration=6, scores={"pred_all/mIoU": 1.0})  # starts anew
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, config={}, keep=0)
    with pytest.raises(ValueError, match="names an evaluator twice"):
        Checkpoints(tmp_path, config={}, metrics=["pred_all/mIoU", "pred_all/mACC"])


@pytest.mark.parametrize("error", [RuntimeError("PytorchStreamWriter failed"), OSError(28, "No space left on device")])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, parts, monkeypatch, error):
    checkpoints = Checkpoints(tmp_path, config={})
    save(checkpoints, parts, 1)

    def full(state, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="previous checkpoint is intact"):
        save(checkpoints, parts, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iter_0000001.pt", "latest.pt"]
    assert load(tmp_path)["iteration"] == 1


def test_another_vocabulary_is_refused_and_named(tmp_path, parts):
    save(Checkpoints(tmp_path, config={}), parts, 1)
    other = Vocabulary.from_mapping({"dog": ["head", "ear"], "car": ["wheel"]}, name="mine")
    with pytest.raises(
        ValueError, match=r"'tiny' \(5 object-parts\).*'mine' \(3.*class 1 is \"dog's tail\" there.*init_from"
    ):
        restore(load(tmp_path), **{**parts, "vocabulary": other})


def test_foreign_and_damaged_files_are_refused(tmp_path, parts):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        resolve(tmp_path)
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="not a checkpoint of partseg"):
        load(tmp_path / "foreign.pt")
    path = save(Checkpoints(tmp_path, config={}), parts, 1)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    torch.save({"format": "partseg-1", "code": Path}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        load(tmp_path / "code.pt")


OLD_NAMES = {
    "partseg.systems.clipseg.network.ClipSeg": "partseg.models.clipseg.ClipSeg",
    "partseg.systems.part_clipseg.network.PartClipSeg": "partseg.models.part_clipseg.PartClipSeg",
    "partseg.backbones.clip_vit.ClipBackbone": "partseg.models.backbone.ClipBackbone",
    "partseg.systems.clipseg.decoder.DecoderShape": "partseg.models.decoder.DecoderShape",
}


def with_old_names(node, feature_cache=None):
    """A config of today as it was written before the classes moved, when a backbone could keep features in a folder."""
    if not isinstance(node, dict):
        return node
    node = {key: with_old_names(value, feature_cache) for key, value in node.items()}
    if "_target_" in node:
        node["_target_"] = OLD_NAMES[node["_target_"]]
        node |= {"feature_cache": feature_cache} if node["_target_"].endswith("ClipBackbone") else {}
    return node


def network_and_parts(choice, tiny):
    """A real network of a config with its optimizer, and the config in plain values."""
    config = plain(compose("train", [f"model={choice}"]))
    model = instantiate(config["model"]).eval()
    return config, {
        "model": model,
        "optimizer": adamw(model, lr=1e-3, weight_decay=0.0),
        "vocabulary": tiny.vocabulary(),
    }


def predicted(model, vocabulary):
    """Scores of a made-up photo."""
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        (scores,) = model.predict(image, model.encode_text(vocabulary), sizes=[(64, 64)])
    return scores.object_part


@pytest.mark.parametrize("choice", ["clipseg_tiny", "part_clipseg_tiny"])
@pytest.mark.parametrize("feature_cache", [None, "features/of/photos"])
def test_a_checkpoint_of_before_the_classes_moved_predicts_the_same(tmp_path, tiny, choice, feature_cache):
    config, parts = network_and_parts(choice, tiny)
    old = {**config, "model": with_old_names(config["model"], feature_cache)}
    assert "partseg.systems" not in str(old["model"]) and "feature_cache" in old["model"]["backbone"]
    save(Checkpoints(tmp_path, config=old), parts, 1)
    model, vocabulary, stored = load_model(tmp_path)
    assert vocabulary == parts["vocabulary"] and stored == old
    assert torch.equal(predicted(model, vocabulary), predicted(parts["model"], vocabulary))


def test_the_averaged_weights_are_what_a_checkpoint_predicts_with(tmp_path, tiny):
    config, parts = network_and_parts("clipseg_tiny", tiny)
    ema = Ema(parts["model"], decay=0.5)
    for _ in range(2):
        ema.update(parts["model"])
        with torch.no_grad():
            parts["model"].decoder.film.mul.weight.add_(0.1)
    save(Checkpoints(tmp_path, config=config), parts, 1, ema=ema)
    model, vocabulary, _ = load_model(tmp_path)
    found = predicted(model, vocabulary)
    assert torch.equal(found, predicted(ema.module.eval(), vocabulary))
    assert not torch.equal(found, predicted(parts["model"], vocabulary))


def test_averages_continue_where_they_stopped(tmp_path, tiny, parts):
    """Weights, running statistics and the number of steps; a checkpoint of before there were the latter begins at 1."""
    for model in (parts["model"], other := tiny.TinyNet()):
        model.norm = torch.nn.BatchNorm2d(2)
    ema, again = Ema(parts["model"], decay=0.9), Ema(other, decay=0.9)
    for _ in range(3):
        ema.update(parts["model"])
        parts["model"].norm(torch.randn(2, 2, 3, 3))
    state = ema.state_dict()
    assert state["n_averaged"] == 3 and "frozen" not in state
    again.load_state_dict(state)
    assert {name: value.tolist() for name, value in again.state_dict().items()} == {
        n: v.tolist() for n, v in state.items()
    }
    for each in (ema, again):
        each.update(parts["model"])
    assert torch.equal(again.module.norm.running_mean, ema.module.norm.running_mean)

    names = {name for name, p in parts["model"].named_parameters() if p.requires_grad}
    old = Ema(other, decay=0.9)
    old.load_state_dict({name: state[name] for name in names})
    assert old.state_dict()["n_averaged"] == 1
    assert torch.equal(old.module.classes.weight, state["classes.weight"])
    with pytest.raises(KeyError, match=r"\['classes.weight'\]; was the freeze policy changed"):
        old.load_state_dict({name: state[name] for name in names - {"classes.weight"}})


def test_averages_are_not_invented(tmp_path, parts):
    save(Checkpoints(tmp_path, config={}), parts, 1)
    with pytest.raises(ValueError, match="no averaged weights"):
        restore(load(tmp_path), **parts, ema=Ema(parts["model"], decay=0.9))
