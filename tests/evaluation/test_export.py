"""Predictions as labels in shards: whole or not at all, one list of shards for all processes, nothing mixed."""

import json
from dataclasses import replace

import pytest

from partseg.data.coco_style import coco_style
from partseg.engine.build import evaluation_set
from partseg.engine.checkpoint import digest, load_model
from partseg.evaluation.export import COMPLETE, ExportOptions, export, made_by, shard_path
from partseg.utils import distributed
from partseg.utils.config import compose, instantiate

OPTIONS = ExportOptions(shard_size=2, batch_size=2, num_workers=0)


@pytest.fixture
def exported(toy_run, tmp_path):
    """Function: options, sha256 of the checkpoint -> number of photos predicted into tmp_path/labels."""
    model = load_model(toy_run)[0]
    toy = ["dataset=toy_pascal_part_116", "model=part_clipseg_tiny", f"data_root={toy_run.parent / 'data'}"]
    config = compose("export", [*toy, "ckpt=x", "output=y"])
    dataset = evaluation_set(config, model.input)

    def run(options=OPTIONS, checkpoint=None):
        checkpoint = checkpoint or digest(toy_run)
        predictor = instantiate(config.predictor)
        return export(model, dataset, tmp_path / "labels", options, predictor=predictor, checkpoint=checkpoint)

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
