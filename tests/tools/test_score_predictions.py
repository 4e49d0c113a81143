"""tools/score_predictions.py gives the integers that eval_net counted when it wrote the predictions."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from partseg.evaluation import results
from partseg.utils.config import compose

TOOL = Path(__file__).parents[2] / "tools" / "score_predictions.py"


@pytest.fixture
def predictions(toy_overrides, load, tmp_path) -> Path:
    """Predictions of the tiny model under every protocol, beside their results.json."""
    load("eval_net").evaluate(compose("eval", [*toy_overrides, "evaluator=tables", "save_predictions=true"]))
    return tmp_path / "out" / "predictions"


def scoring(overrides, folder, *more):
    kept = [o for o in overrides if not o.startswith(("ckpt=", "output="))]
    return [*kept, f"predictions={folder}", *more]


def test_round_trip_with_eval_net(predictions, toy_overrides):
    command = [sys.executable, str(TOOL), *scoring(toy_overrides, predictions, "evaluator=tables")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, expected = results.read(predictions), results.read(predictions.parent)
    assert found["protocols"] == expected["protocols"]
    assert found["vocabulary"] == expected["vocabulary"]
    assert found["checkpoint"] is None


def test_predictions_of_another_model(toy_overrides, toy_run, load, tmp_path):
    """8-bit PNGs in one folder: the labels themselves, which are right everywhere."""
    labels = toy_run.parent / "data" / "ToyPascalPart116" / "annotations_detectron2_part" / "val"
    for path in labels.glob("*.png"):
        Image.fromarray(np.asarray(Image.open(path))).save(tmp_path / path.name)
    overrides = scoring(toy_overrides, tmp_path, "bits=8", f"output={tmp_path / 'scores'}")
    load("score_predictions").score(compose("score", overrides))
    for entry in results.read(tmp_path / "scores")["protocols"].values():
        assert entry["metrics"]["mIoU"] == pytest.approx(100)
        assert entry["metrics"]["pACC"] == pytest.approx(100)


def test_a_missing_folder_is_named(toy_overrides, load):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load("score_predictions").score(compose("score", scoring(toy_overrides, "nowhere")))
