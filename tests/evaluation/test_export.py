"""Predictions as labels in shards: whole or not at all, one list of shards for all processes, nothing mixed."""

import json
import time
from dataclasses import replace

import pytest

from partseg.data.coco_style import coco_style
from partseg.engine.build import evaluation_set
from partseg.engine.checkpoint import digest, load_model
from partseg.evaluation import export as export_module
from partseg.evaluation.export import COMPLETE, ExportOptions, export, made_by, shard_path
from partseg.utils import distributed
from partseg.utils.config import compose, instantiate
from toy_world.writer import ToyOptions, write_toy

OPTIONS = ExportOptions(shard_size=2, batch_size=2, num_workers=0)


@pytest.fixture
def exported(toy_run, tmp_path):
    """Function: options, sha256 of the checkpoint -> number of photos predicted into tmp_path/labels."""
    model = load_model(toy_run)[0]
    toy = ["dataset=toy_pascal_part_116", "model=part_clipseg_tiny", f"data_root={toy_run.parent / 'data'}"]
    config = compose("export", [*toy, "ckpt=x", "output=y"])
    dataset = evaluation_set(config, model.input)

    def run(options=OPTIONS, checkpoint=None):
        options = replace(options, checkpoint=checkpoint or digest(toy_run))
        return export(model, dataset, tmp_path / "labels", options, predictor=instantiate(config.predictor))

    return run


def test_shards_are_labels_and_only_missing_ones_are_made(exported, toy_run, tmp_path):
    assert exported() == 5 and made_by(tmp_path / "labels") == digest(toy_run)
    shards = [shard_path(tmp_path / "labels", k) for k in range(3)]
    before = [path.read_bytes() for path in shards]
    read = coco_style(".", "val", vocabulary="pascal_part_116", annotations=str(tmp_path / "labels" / "shard-*.json"))
    assert len(read) == 5 and any(record.annotations for record in read.records)
    shards[1].unlink()
    (tmp_path / "labels" / COMPLETE).unlink()
    assert exported() == 2 and [path.read_bytes() for path in shards] == before
    assert json.loads((tmp_path / "labels" / COMPLETE).read_text())["shards"] == 3


def test_weak_segments_are_left_out(exported, tmp_path):
    exported(replace(OPTIONS, min_score=1.0))
    content = json.loads(shard_path(tmp_path / "labels", 0).read_text())
    assert len(content["images"]) == 2 and content["annotations"] == []


@pytest.mark.parametrize(
    ("options", "checkpoint"),
    [(replace(OPTIONS, shard_size=3), None), (replace(OPTIONS, min_score=0.5), None), (OPTIONS, "x")],
)
def test_another_export_is_not_mixed_in(exported, tmp_path, options, checkpoint):
    exported()
    before = shard_path(tmp_path / "labels", 0).read_bytes()
    with pytest.raises(ValueError, match="holds another export .*; give another output, or delete it"):
        exported(options, checkpoint)
    assert shard_path(tmp_path / "labels", 0).read_bytes() == before


def test_processes_share_the_shards_even_when_one_comes_late(exported, tmp_path, monkeypatch):
    """Rank 1 starts after rank 0 has written its shards: it still makes its own, as listed before."""
    listed = []

    def from_main(function):
        listed.append(function() if not listed else listed[0])
        return listed[-1]

    monkeypatch.setattr(distributed, "from_main", from_main)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value])
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    for rank, count in ((0, 3), (1, 2)):  # shards 0 and 2 (of one photo), then shard 1
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "is_main", lambda rank=rank: rank == 0)
        assert exported() == count
    assert sorted(path.name for path in (tmp_path / "labels").glob("shard-*")) == [
        f"shard-0000{k}.json" for k in range(3)
    ]


@pytest.fixture
def started(toy_run, forked, tmp_path, monkeypatch):
    """Function: folder, number -> so many forked processes of one group that export nine photos, a shard each."""
    write_toy(tmp_path / "toy", ToyOptions(num_train=9, num_val=1, size=64))
    model = load_model(toy_run)[0]
    photos = f"dataset.root={tmp_path / 'toy' / 'images' / 'train'}"
    config = compose("export", ["dataset=folder", photos, "ckpt=x", "output=y"])
    dataset, predictor = evaluation_set(config, model.input), instantiate(config.predictor)
    predict = export_module._predict

    def slowly(*arguments):
        time.sleep(0.1)  # so that a kill comes in the middle
        return predict(*arguments)

    monkeypatch.setattr(export_module, "_predict", slowly)

    def start(folder, count):
        def work():
            done = export(model, dataset, folder, replace(OPTIONS, shard_size=1), predictor=predictor)
            (tmp_path / f"done_{distributed.rank()}").write_text(str(done))

        return forked.start(work, processes=count)

    return start


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "resumed"), [(1, 2), (2, 3), (3, 1)])
def test_kills_and_other_numbers_of_processes_lose_nothing_and_do_nothing_twice(started, tmp_path, killed, resumed):
    def shards(name):
        return {path.name: path for path in (tmp_path / name).glob("shard-*.json")}

    for process in started(tmp_path / "whole", 1):
        process.join(120)
    whole = shards("whole")
    processes = started(tmp_path / "labels", killed)
    deadline = time.monotonic() + 120
    while len(shards("labels")) < 3:
        assert time.monotonic() < deadline, "no shards"
        time.sleep(0.002)
    for process in processes:
        process.kill()
        process.join()
    before = {name: path.stat().st_mtime_ns for name, path in shards("labels").items()}
    assert 3 <= len(before) < 9 and not (tmp_path / "labels" / COMPLETE).exists()
    processes = started(tmp_path / "labels", resumed)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * resumed
    assert (tmp_path / "done_0").read_text() == str(9 - len(before))
    after = shards("labels")
    assert {name: after[name].stat().st_mtime_ns for name in before} == before
    assert {name: path.read_bytes() for name, path in after.items()} == {n: p.read_bytes() for n, p in whole.items()}
    pictures = [image["file_name"] for path in after.values() for image in json.loads(path.read_text())["images"]]
    assert len(pictures) == len(set(pictures)) == 9 and (tmp_path / "labels" / COMPLETE).is_file()
