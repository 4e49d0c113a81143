"""PartCATSeg, and CAT-Seg guided by DINOv2, through the tools; object first through the evaluation and for photos."""

import json

import numpy as np
import pytest
from PIL import Image

from partseg.evaluation import results
from partseg.utils.config import compose
from toy_world.writer import ToyOptions, write_toy

OFFICIAL = ["recipe=official", "model.inference.short_edge=[80,96]"]
CHOICES = {
    "part_cat_seg": ("part_cat_seg", ["predictor.object_first=true"]),
    "part_cat_seg_official": ("part_cat_seg", [*OFFICIAL, "model.recompute=true"]),
    "cat_seg_dinov2": ("cat_seg_dinov2", ["predictor.object_first=true", "predictor.mask_crops=true"]),
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
    losses = [line for line in lines if "train/loss" in line]
    assert np.isfinite([line["train/loss"] for line in losses]).all()
    assert ("train/composition" in losses[0]) == system.startswith("part")
    assert any("oracle_obj/mIoU" in line for line in lines) and list((run / "pictures").glob("*.png"))

    load("eval_net").evaluate(compose("eval", [*overrides, f"ckpt={run}", f"output={tmp_path / 'eval'}"]))
    content = results.read(tmp_path / "eval")
    assert set(content["protocols"]) >= {"oracle_obj", "pred_all"}
    assert content["protocols"]["oracle_obj"]["num_images"] == 2

    photo = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    predict = load("predict")
    first = "predictor.object_first=true" in own
    options = predict.Options(
        run, (str(tmp_path / "a.png"),), output=tmp_path / "out", device="cpu", object_first=first
    )
    assert predict.main(options) == 0
    assert len(json.loads((tmp_path / "out" / "segments.json").read_text())["images"]) == 1
