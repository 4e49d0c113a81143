"""OPS through the real tools, untrained: scores, names of another system, a photo, labels for the next stage."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import partseg
from partseg.data.coco_style import coco_style
from partseg.data.mapper import TrainMapper
from partseg.engine.build import evaluation_set
from partseg.engine.checkpoint import Checkpoints
from partseg.engine.run import plain
from partseg.evaluation import results
from partseg.evaluation.export import ExportOptions, export
from partseg.evaluation.predictor import Predictor
from partseg.losses.criterion import loss_of
from partseg.structures import collate
from partseg.utils.config import compose, instantiate

pytest.importorskip("transformers", reason="the network is transformers' Mask2Former (pip install transformers)")


@pytest.fixture(scope="module")
def run(toy_run, tmp_path_factory):
    """(run directory of an untrained OPS, overrides that name its experiment and the toy data)."""
    overrides = [
        "experiment=ops_toy_pascal_part_116",
        "model=ops_tiny",
        f"data_root={toy_run.parent / 'data'}",
        "launch.num_gpus=0",
        "eval.num_workers=0",
        "augmentation.size=96",
    ]
    config = compose("train", overrides)
    torch.manual_seed(0)
    model = instantiate(config.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    folder = tmp_path_factory.mktemp("ops") / "run"
    vocabulary = instantiate(config.dataset, split="train").vocabulary
    checkpoints = Checkpoints(folder / "checkpoints", config=plain(config))
    checkpoints.save(model, optimizer=optimizer, iteration=3, vocabulary=vocabulary, ema=None)
    return folder, overrides


def evaluate(load, run, tmp_path, *more):
    folder, overrides = run
    config = compose("eval", [*overrides, f"ckpt={folder}", f"output={tmp_path}", *more])
    load("eval_net").evaluate(config)
    return results.read(tmp_path)


def test_its_checkpoint_is_scored(load, run, tmp_path):
    content = evaluate(load, run, tmp_path)
    assert set(content["protocols"]) == {"segments", "semantic_oracle", "semantic_oracle_background"}
    assert content["protocols"]["segments"]["num_predictions"] > 0 and content["adaptation"] is None
    scores = content["protocols"]["semantic_oracle_background"]["metrics"]
    assert {"mIoU", "fwIoU", "mACC", "mIoU_with_background", "mACC_with_background"} <= set(scores)


def test_a_system_with_text_names_its_segments(load, run, toy_run, tmp_path):
    content = evaluate(load, run, tmp_path, f"names={toy_run}", "evaluator=oracle_obj", "best.metrics=[]")
    assert (
        content["names"]["path"] == str(toy_run) and content["protocols"]["oracle_obj"]["metrics"]["mIoU"] is not None
    )
    with pytest.raises(ValueError, match="is told which objects there are"):
        evaluate(load, run, tmp_path / "other", f"names={toy_run}", "evaluator=default", "best.metrics=[]")


def test_a_masked_object_gets_parts_as_rle(load, run, tmp_path, capsys):
    predict = load("predict")
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(
        tmp_path / "photos/a.png"
    )
    mask = np.zeros((40, 50), np.uint8)
    mask[5:30, 10:40] = 255
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    options = predict.Options(run[0], (str(tmp_path / "photos"),), device="cpu", protocol="oracle_obj")
    options = replace(options, masks=tmp_path / "masks", output=tmp_path / "out")
    assert predict.main(options) == 0
    found = json.loads((tmp_path / "out" / "segments.json").read_text())["annotations"]
    (given,) = [each for each in found if "parent_id" not in each]
    for value, message in ((0, "object mask of 'dog' is empty"), (255, "object mask covers the whole photo")):
        Image.fromarray(np.full_like(mask, value)).save(tmp_path / "masks/a.png")
        named = replace(options, object="dog", vocabulary="{dog: [head]}", output=tmp_path / "bad")
        assert predict.main(named) == 1 and message in capsys.readouterr().out
    parts = [each for each in found if each is not given]
    assert given["area"] == 750 and parts and {each["parent_id"] for each in parts} == {given["id"]}
    assert all(each["area"] <= 750 and each["category_id"] == 0 for each in parts)
    middle = sorted(each["score"] for each in parts)[len(parts) // 2]
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    assert predict.main(replace(options, output=tmp_path / "less", min_score=middle)) == 0
    kept = json.loads((tmp_path / "less" / "segments.json").read_text())["annotations"]
    assert 1 < len(kept) < len(found) and min(each["score"] for each in kept) >= middle - 1e-4


def test_its_parts_are_labels_for_the_next_stage(run, tmp_path, caplog):
    """Exported, read again, and trained on: the loss of pseudo labels is that of any instances."""
    folder, overrides = run
    config = compose("train", overrides)
    model = instantiate(config.model)
    dataset = evaluation_set(config, model.input)
    options = ExportOptions(protocol="oracle_obj", min_score=0.0, checkpoint="first")
    nothing = replace(options, min_score=1.0)
    assert export(model.eval(), dataset, tmp_path / "none", nothing, predictor=Predictor()) == len(dataset)
    assert f"{len(dataset)} of {len(dataset)} photos have no part with a score of 1 or more: " in caplog.text
    assert export(model, dataset, tmp_path / "labels", options, predictor=Predictor()) == len(dataset)
    with pytest.raises(ValueError, match="holds another export.*checkpoint.*first.*second"):
        export(model, dataset, tmp_path / "labels", replace(options, checkpoint="second"), predictor=Predictor())
    mapper = TrainMapper(96, about="object", instances="annotated")
    words = {"vocabulary": "pascal_part_116", "annotations": "shard-*.json", "all_seen": True, "mapper": mapper}
    words["origin"] = {"dataset": dataset.name}
    read = coco_style(tmp_path / "labels", "train", **words)
    samples = [read[i] for i in range(2)]
    assert all((sample.instances.label == -1).sum() > 0 for sample in samples)
    batch = collate(samples, vocabulary=read.vocabulary)
    loss, terms, _ = loss_of(model.train(), instantiate(config.criterion), batch)
    assert torch.isfinite(loss) and terms["dice"] > 0


def test_labels_of_other_pictures_or_words_are_refused(run, tmp_path):
    content = {"images": [{"id": 1, "file_name": "gone.png"}], "annotations": [], "categories": []}
    (tmp_path / "shard-00000.json").write_text(json.dumps(content))
    words = {"vocabulary": "pascal_part_116", "annotations": "shard-*.json", "mapper": TrainMapper(96)}
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        coco_style(tmp_path, "train", images=".", **words)[0]
    content["categories"] = [{"id": 0, "name": "part"}, {"id": 1, "name": "spaceship"}]
    (tmp_path / "shard-00000.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="1 categories are neither objects nor object-parts.*spaceship"):
        coco_style(tmp_path, "train", images=".", **words)


@pytest.fixture
def shards(tmp_path):
    """Function: pictures with their parts' scores, of a shard with this number and origin; its folder."""

    def written(*scores, number=0, **origin):
        rle = {"size": [4, 4], "counts": [4, 4, 8]}
        images = [{"id": i, "file_name": f"{number}{i}.png"} for i in range(len(scores))]
        parts = [
            {"image_id": i, "category_id": 0, "segmentation": rle, "score": score}
            for i, each in enumerate(scores)
            for score in each
        ]
        made = {"info": {"made_from": origin}} if origin else {}
        content = {**made, "images": images, "annotations": parts, "categories": [{"id": 0, "name": "part"}]}
        (tmp_path / f"shard-{number:05d}.json").write_text(json.dumps(content))
        return tmp_path

    return written


LABELS = {"split": "train", "vocabulary": "pascal_part_116", "annotations": "shard-*.json", "images": "."}


def test_pseudo_labels_of_another_data_set_or_checkpoint_are_refused(shards, tmp_path):
    (tmp_path / "own.pt").write_bytes(b"x")
    (tmp_path / "other.pt").write_bytes(b"y")
    sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    folder = shards([0.5], dataset="toys", checkpoint=sha256)
    origin = {"dataset": "toys", "checkpoint": str(tmp_path / "own.pt")}
    for asked in (None, {"dataset": None, "checkpoint": None}, origin):
        assert len(coco_style(folder, **LABELS, origin=asked)) == 1
    for key, value, message in (
        ("dataset", "photos", r"labels of another dataset \(toys, not photos\).*dataset\.origin\.dataset=null"),
        ("checkpoint", str(tmp_path / "other.pt"), f"labels of another checkpoint .{sha256}, not .*other.pt"),
        ("seed", "1", r"dataset\.origin has \['seed'\]; it may hold \['dataset', 'checkpoint'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            coco_style(folder, **LABELS, origin={**origin, key: value})
    with pytest.raises(FileNotFoundError, match=r"origin\.checkpoint=gone\.pt is no file"):
        coco_style(folder, **LABELS, origin={"checkpoint": "gone.pt"})
    shards([0.5], number=1, dataset="toys", checkpoint="another")
    with pytest.raises(ValueError, match=r"shard-00001.json and .*not made by one export \(checkpoint: 2d71.* and ano"):
        coco_style(folder, **LABELS)
    with pytest.raises(ValueError, match=r"another dataset \(which it does not name, not toys\)"):
        coco_style(shards([0.5]), **LABELS | {"annotations": "shard-00000.json"}, origin=origin)


def test_pictures_without_a_part_above_the_threshold_are_counted_and_named(shards, caplog):
    folder = shards([0.5, 0.2], [0.2], [], dataset="toys")
    dataset = coco_style(folder, **LABELS, min_score=0.3)
    assert len(dataset) == 3 and dataset.skipped["image_without_part"] == 2
    assert "2 of 3 images have no part with a score above the threshold" in caplog.text and "01, 02" in caplog.text
    with pytest.raises(ValueError, match="no image of 'coco_style' has a part.*lower dataset.min_score"):
        coco_style(folder, **LABELS, min_score=0.6)


def test_the_page_cuts_what_is_drawn_around(load, run, tmp_path):
    """An outline is the object; a click needs a model that finds objects by itself."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    (tmp_path / "downloads").mkdir()
    segmenter = partseg.load(run[0], device="cpu")
    page = load("demo").Page(segmenter, max_pixels=10_000, max_parts=3, folder=tmp_path / "downloads")
    outline = json.dumps([{"outline": [[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]]}])
    asked = (str(tmp_path / "x.png"), "dog: head", "oracle_obj", "dog")
    html, _, files = page.find_parts(*asked, outline)
    assert "partseg-viewer" in html and "segment 1" in html
    written = json.loads(next(Path(file) for file in files if file.endswith(".json")).read_text())
    names = [each["name"] for each in written["segments"]]
    assert (
        names.count("dog") == 1 and "segment 1" in names and all(each["segmentation"] for each in written["segments"])
    )
    html, status, _ = page.find_parts(*asked, json.dumps([{"click": [0.5, 0.5]}]))
    assert not html and "draw around it" in status
    assert "draw around it" in page.find_parts(*asked, "[]")[1], "the message is the page's, not the library's"
    _, status, _ = page.find_parts(str(tmp_path / "x.png"), "dog: head", "pred_all", None, "[]")
    assert "cuts a given object into parts" in status
