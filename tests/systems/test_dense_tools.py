"""CAT-Seg and PartCATSeg in all variants through the tools: trained and scored, asked about photos, object first."""

import json

import numpy as np
import pytest
from PIL import Image

from partseg.evaluation import results
from partseg.utils.config import compose
from toy_world.writer import ToyOptions, write_toy

OFFICIAL = ["recipe=official", "model.inference.short_edge=[80,96]"]
WINDOWS = ["model.inference.canvas=96", "model.inference.window=64", "model.inference.stride=32"]
CHOICES = {
    "cat_seg": [],
    "cat_seg official": OFFICIAL,
    "cat_seg_cvpr24": ["model.recompute=true"],
    "cat_seg_cvpr24 official": [*OFFICIAL, *WINDOWS],
    "cat_seg_dinov2": ["predictor.object_first=true", "predictor.mask_crops=true"],
    "part_cat_seg": ["predictor.object_first=true"],
    "part_cat_seg official": [*OFFICIAL, "model.recompute=true"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two training and two validation pictures, and a photo."""
    folder = tmp_path_factory.mktemp("world")
    write_toy(folder / "ToyPascalPart116", ToyOptions(num_train=2, num_val=2, size=64))
    photo = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(photo).save(folder / "a.png")
    return folder


@pytest.mark.parametrize("choice", CHOICES)
def test_one_command_each(choice, world, tmp_path, load):
    system, own = choice.split()[0], CHOICES[choice]
    overrides = [
        f"experiment={system}_toy_pascal_part_116", f"model={system}_tiny", f"data_root={world}",
        f"output_root={tmp_path}", "name=run", "init_from=null", "allow_random=true",
        "launch.num_gpus=0", "model.image_size=64",
        "train.iterations=2", "train.batch_size=2", "train.num_workers=0", "eval.num_workers=0", "eval.batch_size=2",
        "hooks.log.every=1", "hooks.evaluate.every=2", "hooks.visualize.every=2", "hooks.visualize.num_images=1",
        "hooks.checkpoint.every=2", *own,
    ]  # fmt: skip
    assert load("train_net").train(compose("train", overrides))
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "train/loss" in line]
    assert np.isfinite([line["train/loss"] for line in losses]).all()
    assert ("train/composition" in losses[0]) == system.startswith("part")
    assert any("oracle_obj/mIoU" in line for line in lines) and list((run / "pictures").glob("*.png"))

    if system == choice:  # recipes are scored while they train
        load("eval_net").evaluate(compose("eval", [*overrides, f"ckpt={run}", f"output={tmp_path / 'eval'}"]))
        content = results.read(tmp_path / "eval")
        assert set(content["protocols"]) >= {"oracle_obj", "pred_all"}
        assert content["protocols"]["oracle_obj"]["num_images"] == 2

    predict = load("predict")
    asked = {"object_first": "predictor.object_first=true" in own}
    if choice in ("cat_seg", "part_cat_seg official"):
        asked = {"phrases": ("a red wheel", "the sky")}
    options = predict.Options(run, (str(world / "a.png"),), output=tmp_path / "out", device="cpu", **asked)
    assert predict.main(options) == 0
    assert len(json.loads((tmp_path / "out" / "segments.json").read_text())["images"]) == 1
