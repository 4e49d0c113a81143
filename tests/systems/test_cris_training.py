"""CRIS from one command: it learns, trains, is evaluated beside the others, predicts; what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import partseg
from partseg.engine import build
from partseg.engine.build import build_model, sync_batch_norm
from partseg.evaluation import results
from partseg.labels import IGNORE_LABEL
from partseg.losses.criterion import loss_of
from partseg.structures import Batch
from partseg.utils.config import compose, instantiate
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases
from partseg.vocabulary.shipped import shipped
from toy_world.writer import ToyOptions, write_toy

SIZE = 64
COLOURS = {"head": (200, 40, 40), "wing": (40, 200, 40), "tail": (40, 40, 220), "wheel": (220, 220, 30)}


def pictures():
    """Eight pictures of four coloured ellipses each, asked for by words; the colour is what tells them apart."""
    rng = np.random.default_rng(0)
    images = rng.integers(90, 150, (8, SIZE, SIZE, 3)).astype(np.uint8)
    masks, texts = np.zeros((8, SIZE, SIZE), bool), []
    y, x = np.mgrid[:SIZE, :SIZE]
    for i in range(8):
        asked = list(COLOURS)[i % 4]
        for place, name in zip(rng.permutation([(20, 20), (20, 46), (46, 20), (46, 46)]), COLOURS):
            radius = rng.uniform(8, 13, 2)
            inside = ((y - place[0]) / radius[0]) ** 2 + ((x - place[1]) / radius[1]) ** 2 < 1
            images[i][inside] = COLOURS[name]
            if name == asked:
                masks[i] = inside
        texts.append(f"the {asked}" if i < 4 else f"{asked} of it")
    nothing = torch.full((8, SIZE, SIZE), IGNORE_LABEL, dtype=torch.int32)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    words = Vocabulary.from_mapping({"a": ["b"]})
    return Batch(
        pixels, nothing, nothing, tuple("abcdefgh"), words, phrases=tuple(texts), phrase_masks=torch.from_numpy(masks)
    )


def test_eight_samples_are_overfitted():
    """Mean IoU above 0.9 in 80 steps, each picture with four things of which the phrase names one."""
    cfg = compose("train", ["experiment=toy_cris", f"model.image_size={SIZE}", "optimizer.lr=2e-3"])
    model, criterion, batch, steps = build_model(cfg), instantiate(cfg.criterion), pictures(), 80
    optimizer = instantiate(cfg.optimizer, model=model)
    for step in range(steps):
        model.train()
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 + math.cos(math.pi * step / steps)) / 2
        loss_of(model, criterion, batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.inference_mode():
        found = model.predict(batch.images, model.encode_text(Phrases(batch.phrases)), sizes=[(SIZE, SIZE)] * 8)
    assert batch.phrase_masks is not None
    pairs = [(each.masks()[i], mask) for i, (each, mask) in enumerate(zip(found, batch.phrase_masks))]
    assert np.mean([((a & b).sum() / (a | b).sum()).item() for a, b in pairs]) > 0.9


# Through the tools ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_toy(folder / "data" / "ToyPascalPart116", ToyOptions(num_train=4, num_val=2, size=64))
    return folder


def settings(world, *more, top="train"):
    return compose(
        top,
        [
            f"data_root={world / 'data'}",
            f"output_root={world}",
            "launch.num_gpus=0",
            "train.num_workers=0",
            "eval.num_workers=0",
            "eval.batch_size=2",
            "train.iterations=2",
            "train.batch_size=2",
            "hooks.evaluate.every=2",
            "hooks.checkpoint.every=2",
            "hooks.visualize.every=2",
            *more,
        ],
    )


TINY = ("model.image_size=64", "name=tiny_cris")


@pytest.fixture(scope="module")
def run(world, request):
    """A run directory of two steps; training evaluates once."""
    from conftest import load_tool

    assert load_tool("train_net").train(settings(world, "experiment=toy_cris", *TINY))
    return world / "tiny_cris"


def test_the_released_partimagenet_trains_from_one_command(world, load):
    """Its files as they are, of made-up pictures; another part of the picture each, by name."""
    names = [f"{owner} {part}".title() for owner, part in shipped("partimagenet").pairs]
    for split in ("train", "val"):
        content = {"categories": [{"id": i, "name": name} for i, name in enumerate(names)], "images": []}
        content["annotations"] = []
        folder = world / "data" / "PartImageNet"
        (folder / "images" / split).mkdir(parents=True)
        (folder / "annotations" / split).mkdir(parents=True)
        for number in (1, 2):
            file = f"n02099601_{number}.JPEG"
            Image.fromarray(pictures().images[number].permute(1, 2, 0).numpy()).save(folder / "images" / split / file)
            content["images"].append({"id": number, "file_name": file, "height": SIZE, "width": SIZE})
            corners = [8, 8, 8, 40, 40, 40, 40, 8]
            entry = {"id": number, "image_id": number, "category_id": number, "segmentation": [corners]}
            content["annotations"].append({**entry, "iscrowd": 0, "area": 1024})
        (folder / "annotations" / split / f"{split}.json").write_text(json.dumps(content))
    more = ("experiment=cris_partimagenet", "model=cris_tiny", "model.image_size=64", "init_from=null", "name=released")
    assert load("train_net").train(settings(world, *more, "hooks.visualize.every=1000"))
    lines = [json.loads(line) for line in (world / "released" / "metrics.jsonl").read_text().splitlines()]
    assert any(line.get("referring/mean_IoU") is not None for line in lines)


def test_training_scores_phrases(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["train/phrase"] for line in lines if "train/phrase" in line]).all()
    assert any("referring/mean_IoU" in line and "referring/category_IoU" in line for line in lines)
    assert (run / "checkpoints" / "best_referring.pt").is_file()


def test_one_phrase_per_class_stands_in_the_same_tables(run, world, load):
    """Oracle-Obj and Pred-All of the vocabulary, and phrases, from one checkpoint."""
    eval_net = load("eval_net")
    for evaluator in ("default", "referring"):
        output = world / f"scores_{evaluator}"
        eval_net.evaluate(
            settings(
                world,
                "experiment=toy_cris",
                *TINY,
                f"evaluator={evaluator}",
                f"ckpt={run}",
                f"output={output}",
                top="eval",
            )
        )
    tables = results.read(world / "scores_default")["protocols"]
    assert {"oracle_obj", "pred_all", "pred_all_strict"} == set(tables)
    assert tables["oracle_obj"]["metrics"]["mIoU"] is not None
    entry = results.read(world / "scores_referring")["protocols"]["referring"]
    assert entry["num_phrases"] == sum(category["num_phrases"] for category in entry["categories"]) > 2
    assert entry["metrics"]["mean_IoU_seen"] is not None


@pytest.mark.parametrize("name", ["clipseg", "part_clipseg"])
def test_others_are_evaluated_as_referring_systems(name, world, load):
    """They take phrases by nature; the same phrases, the same measures."""
    more = (f"experiment=toy_{name}", "evaluator=referring", "best.metrics=[]", "eval.phrases=true", f"name={name}")
    assert load("train_net").train(settings(world, *more))
    load("eval_net").evaluate(
        settings(world, *more, f"ckpt={world / name}", f"output={world / f'{name}_scores'}", top="eval")
    )
    entry = results.read(world / f"{name}_scores")["protocols"]["referring"]
    assert entry["num_phrases"] > 2 and entry["metrics"]["mean_IoU"] is not None


def test_phrases_of_a_photo(run, tmp_path, load):
    """The command line takes a list; the notebook a text. Both are the masks that the network finds."""
    predict = load("predict")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    texts = ["dog ear", "front wheel, left"]
    arguments = [f"ckpt={run}", f"input={tmp_path / 'a.png'}", f"output={tmp_path / 'out'}", "device=cpu"]
    options = predict.arguments.parse(predict.Options, [*arguments, f"phrases={json.dumps(texts)}"])
    assert options.phrases == tuple(texts) and predict.main(options) == 0
    written = json.loads((tmp_path / "out" / "segments.json").read_text())
    assert [category["name"] for category in written["categories"]] == texts
    segmenter = partseg.load(run, device="cpu")
    masks = segmenter.refer(pixels, texts)
    found = {annotation["category_id"]: annotation["area"] for annotation in written["annotations"]}
    assert {i: int(mask.sum()) for i, mask in enumerate(masks, start=1) if mask.any()} == found
    assert (segmenter.refer(pixels, texts[0]) == masks[0]).all()


# What is refused ------------------------------------------------------------------------------------------------------
def test_batches_of_one_are_refused_with_a_reason(world, load):
    config = settings(world, "experiment=toy_cris", "model.image_size=64", "name=one", "train.accumulation=2")
    with pytest.raises(ValueError, match=r"one image has no statistics.*train.batch_size must be at least twice"):
        load("train_net").train(config)


def test_statistics_of_all_processes_need_gpus(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    synced, images = sync_batch_norm(model, torch.device("cpu")), torch.rand(2, 3, 4, 4)
    assert isinstance(synced[1], torch.nn.SyncBatchNorm) and synced.train()(images).isfinite().all()
    monkeypatch.setattr(build.distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="train.sync_batch_norm=true needs GPUs"):
        sync_batch_norm(model, torch.device("cpu"))
