"""scripts/real_smoke.sh with the tiny model on real files, and the tools it calls."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from partseg.utils.config import compose, instantiate
from partseg.weights.load import load_weights
from toy_world.writer import ToyOptions, write_toy

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "real_smoke.sh"


def test_random_weights_are_read_by_the_real_loader(load, tmp_path):
    tool = load("random_weights")
    first, again, other = (tmp_path / f"{name}.safetensors" for name in ("first", "again", "other"))
    for path, seed in ((first, 1), (again, 1), (other, 2)):
        tool.main(tool.Options(output=path, model="part_clipseg_tiny", seed=seed))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    model = instantiate(compose("train", ["model=part_clipseg_tiny"]).model)
    report = load_weights(model, str(first), require=("backbone", "decoder"))
    assert report.layout == "hf_clipseg" and not report.unexpected and not report.resized
    assert set(report.missing) <= {n for n in model.state_dict() if n.startswith(("background", "adapter.", "pair."))}
    position = model.backbone.clip.visual.positional_embedding
    filters = model.backbone.clip.visual.conv1.weight.flatten(1).norm(dim=1)
    assert position.std().item() == pytest.approx(filters.square().mean().sqrt().item(), rel=0.01)


def test_random_weights_refuse_another_suffix(load, tmp_path):
    tool = load("random_weights")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        tool.main(tool.Options(output=tmp_path / "w.pt"))


def test_choose_lists_photos_and_hides_all_other_objects(load, tmp_path, capsys):
    tool = load("real_smoke")
    write_toy(tmp_path / "ToyPascalPart116", ToyOptions(num_train=4, num_val=1, size=64))
    root = str(tmp_path / "ToyPascalPart116")
    tool.choose("toy_pascal_part_116", root, "toy_train_00001", "toy_train_00002")
    overrides = capsys.readouterr().out.split("\n")
    assert overrides[0] == "+dataset.shots=2" and overrides[2] == "+eval_dataset.shots=2"
    cfg = compose("train", ["dataset=toy_pascal_part_116", f"data_root={tmp_path}", *filter(None, overrides)])
    chosen = instantiate(cfg.dataset, split="train")
    assert [record.image_id for record in chosen.records] == ["toy_train_00001", "toy_train_00002"]
    labels = [np.unique(Image.open(record.object_part_file_name)).tolist() for record in chosen.records]
    pairs = chosen.label_vocabulary.pairs
    assert set(chosen.vocabulary.objects) == {pairs[k][0] for k in sum(labels, []) if k < len(pairs)}
    with pytest.raises(ValueError, match="no training photos"):
        tool.choose("toy_pascal_part_116", root, "absent")


def test_missing_raw_files_and_weights_are_named(tmp_path):
    nowhere = _run(str(tmp_path / "nowhere"))
    assert nowhere.returncode == 3 and "no raw Pascal-Part files" in nowhere.stderr
    weights = _run(str(tmp_path), "--weights", "no.safetensors")
    assert weights.returncode == 3 and "no weights file no.safetensors" in weights.stderr
    assert _run("--stepz", "3").returncode == 2


@pytest.mark.slow
def test_from_raw_files_to_pictures(samples, tmp_path):
    settings = ["--model", "part_clipseg_tiny", "--steps", "2", "--batch", "2", "--overfit-steps", "3", "--least", "-1"]
    done = _run(str(samples / "pascal_part"), str(samples / "ade20k_full"), "--output", str(tmp_path), *settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "s per step" in done.stdout and "RANDOM WEIGHTS" in done.stdout
    for run, photos in (("overfit_pascal", 2), ("overfit_ade", 1)):
        result = json.loads((tmp_path / "runs" / run / "results.json").read_text())
        assert result["complete"] and result["dataset"]["num_images"] == photos
        assert {"oracle_obj", "pred_all", "pred_all_strict"} <= set(result["protocols"])
        with Image.open(tmp_path / f"{run}.png") as picture:
            assert picture.size[0] > 1000
    assert len(list((tmp_path / "predictions").glob("*_labels.png"))) == 2
    failing = _run(str(samples / "pascal_part"), "none", "--output", str(tmp_path), *settings[:-1], "100")
    assert failing.returncode != 0 and "is not above 100" in failing.stderr


def _run(*arguments):
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=900)


def test_helper_explains_itself():
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "real_smoke.py")], capture_output=True, text=True)
    assert done.returncode == 1 and "choose" in done.stderr
