"""CAT-Seg through the tools that every system goes through: trained, evaluated and asked about photos."""

import json

import numpy as np
import pytest
from PIL import Image

from partseg.evaluation import results
from partseg.utils.config import compose
from toy_world.writer import ToyOptions, write_toy

OFFICIAL = ["recipe=official", "model.inference.short_edge=[80,96]"]
CHOICES = {
    "cat_seg": ("cat_seg", []),
    "cat_seg_official": ("cat_seg", OFFICIAL),
    "cat_seg_cvpr24": ("cat_seg_cvpr24", ["model.recompute=true"]),
    "cat_seg_cvpr24_official": (
        "cat_seg_cvpr24",
        [*OFFICIAL, "model.inference.canvas=96", "model.inference.window=64", "model.inference.stride=32"],
    ),
}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_toy(folder / "ToyPascalPart116", ToyOptions(num_train=4, num_val=2, size=64))
    return folder


@pytest.mark.parametrize("choice", CHOICES)
def test_one_command_each(choice, data_root, tmp_path, load):
    system, own = CHOICES[choice]
    overrides = [
        f"experiment={system}_toy_pascal_part_116", f"model={system}_tiny", f"data_root={data_root}",
        f"output_root={tmp_path}", "name=run", "init_from=null", "allow_random=true",
        "launch.num_gpus=0", "model.image_size=64",
        "train.iterations=2", "train.batch_size=2", "train.num_workers=0", "eval.num_workers=0", "eval.batch_size=2",
        "hooks.log.every=1", "hooks.evaluate.every=2", "hooks.visualize.every=2", "hooks.checkpoint.every=2", *own,
    ]  # fmt: skip
    assert load("train_net").train(compose("train", overrides))
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["train/loss"] for line in lines if "train/loss" in line]).all()
    assert any("oracle_obj/mIoU" in line for line in lines) and list((run / "pictures").glob("*.png"))

    load("eval_net").evaluate(compose("eval", [*overrides, f"ckpt={run}", f"output={tmp_path / 'eval'}"]))
    content = results.read(tmp_path / "eval")
    assert set(content["protocols"]) >= {"oracle_obj", "pred_all"}
    assert content["protocols"]["oracle_obj"]["num_images"] == 2

    photo = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    predict = load("predict")
    options = predict.Options(run, (str(tmp_path / "a.png"),), output=tmp_path / "out", device="cpu")
    assert predict.main(options) == 0
    assert len(json.loads((tmp_path / "out" / "segments.json").read_text())["images"]) == 1
    options = predict.Options(
        run, (str(tmp_path / "a.png"),), output=tmp_path / "said", device="cpu", phrases=("a red wheel", "the sky")
    )
    assert predict.main(options) == 0
