"""results.json is whole or absent, and holds what its docstring says."""

import json
from dataclasses import replace

import pytest

from partseg.evaluation import results
from partseg.evaluation.metrics import AVERAGINGS
from partseg.evaluation.pixels import METRICS, PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj, PredAll
from partseg.evaluation.report import table
from partseg.evaluation.runner import run


@pytest.fixture
def evaluation(model, vocabulary, samples_of, batched):
    evaluators = {p.name: PixelEvaluator(p, metrics=METRICS) for p in (OracleObj(), PredAll())}
    return run(model, batched(samples_of(3), 2), vocabulary=vocabulary, predictor=Predictor(), evaluators=evaluators)


def test_an_entry_agrees_with_itself(evaluation, vocabulary):
    counts = evaluation.results["pred_all"]
    entry = json.loads(json.dumps(counts.describe()))
    assert entry["num_pixels"] == sum(c["num_pixels"] for c in entry["classes"])
    assert entry["num_pixels"] == sum(pixels for *_, pixels in entry["confusion"])
    assert entry["metrics"]["mIoU_seen"] == entry["averages"]["iou"]["present"]["seen"]
    assert set(entry["averages"]["iou"]) == set(AVERAGINGS)
    for name, row in zip(vocabulary.object_parts, entry["classes"]):
        assert entry["metrics"][f"IoU/{name}"] == row["iou"]
        assert name == f"{row['object']}'s {row['part']}"
    rows = [row["iou"] for row in entry["classes"] if row["num_pixels"]]
    assert entry["metrics"]["mIoU"] == pytest.approx(sum(rows) / len(rows))
    assert set(entry["objects"]) == {"bird", "car", "dog"}
    assert entry["parts"]["head"] is not None
    assert {"boundary_iou", "boundary_iou_d2", "recall"} <= set(entry["classes"][0])
    without = entry["without_background_predictions"]["present"]["all"]
    assert without >= entry["metrics"]["mIoU"]


def test_the_averaging_rule_of_the_evaluator_is_the_one_shown(model, vocabulary, samples_of, batched):
    evaluators = {rule: PixelEvaluator(PredAll(), averaging=rule) for rule in AVERAGINGS}
    loader = batched(samples_of(1), 1)
    counts = run(model, loader, vocabulary=vocabulary, predictor=Predictor(), evaluators=evaluators).results
    for rule in AVERAGINGS:
        assert counts[rule].scores()["mIoU"] == counts[rule].averages()["iou"][rule]["all"]


def test_written_whole_and_read_back(tmp_path):
    path = results.write(tmp_path / "run", {"synthetic": False})
    assert results.read(path) == results.read(path.parent)
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="has not finished"):
        results.read(path.parent)


def test_half_a_file_is_not_a_result(tmp_path):
    path = results.write(tmp_path, {"protocols": {}})
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="damaged"):
        results.read(path)
    path.write_text('{"format": "partseg-results-1"}')
    with pytest.raises(ValueError, match="not a complete result"):
        results.read(path)


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        results.write(tmp_path, {"what": object()})
    assert list(tmp_path.iterdir()) == []


def test_synthetic_data_is_recognised_by_its_provenance(tmp_path):
    image = tmp_path / "Toy" / "images" / "val" / "a.jpg"
    assert not results.is_synthetic(image)
    image.parent.mkdir(parents=True)
    (tmp_path / "Toy" / "provenance.json").write_text('{"synthetic": true}')
    assert results.is_synthetic(image)


def test_the_table_shows_a_dash_where_nothing_is_defined(evaluation, vocabulary):
    all_seen = vocabulary.with_unseen(())
    entries = {name: replace(counts, vocabulary=all_seen).describe() for name, counts in evaluation.results.items()}
    content = {"protocols": entries, "synthetic": True, "dataset": {"name": "toys", "split": "val"}}
    shown = table(content)
    assert "SYNTHETIC" in shown.title
    assert list(shown.columns[4].cells)[0] == "-"
    assert shown.row_count == 2 * 5  # mIoU, recall and three Boundary IoUs of each protocol
