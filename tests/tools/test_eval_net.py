"""tools/eval_net.py from the command line to results.json, and what it refuses."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from partseg.evaluation import results
from partseg.evaluation.runner import run
from partseg.utils.config import compose

TOOL = Path(__file__).parents[2] / "tools" / "eval_net.py"


def start(overrides):
    return subprocess.run([sys.executable, str(TOOL), *overrides], capture_output=True, text=True, timeout=300)


@pytest.fixture
def tool(load):
    return load("eval_net")


def test_command_line_to_results(toy_overrides, toy_run, tmp_path):
    done = start([*toy_overrides, "evaluator=tables", "plots=true", "save_predictions=true"])
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC DATA" in done.stdout
    assert "harmonic" in done.stdout
    content = results.read(tmp_path / "out")
    assert content["synthetic"] is True
    assert content["cross_dataset"] is False
    assert content["dataset"]["num_images"] == 5
    checkpoint = (toy_run / "checkpoints" / "iter_0000003.pt").read_bytes()
    assert content["checkpoint"]["sha256"] == hashlib.sha256(checkpoint).hexdigest()
    assert content["checkpoint"]["iteration"] == 3
    assert content["vocabulary"]["num_object_parts"] == 116
    assert set(content["protocols"]) == {"oracle_obj", "pred_all", "pred_all_strict"}
    entry = content["protocols"]["oracle_obj"]
    assert entry["num_images"] == 5
    assert {"boundary_iou_d2_unseen", "recall_seen", "IoU/dog's head"} <= set(entry["metrics"])
    assert len(entry["classes"]) == 116
    assert content["seconds_per_image"]["network"] > 0
    assert content["config"]["ckpt"] == str(toy_run)
    assert len(list((tmp_path / "out" / "plots").glob("*.png"))) == 6
    assert len(list((tmp_path / "out" / "predictions" / "pred_all").glob("*.png"))) == 5


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 3])
def test_any_number_of_processes_writes_the_same_integers(toy_overrides, tmp_path, num_processes):
    contents = []
    for n in (1, num_processes):
        done = start([*toy_overrides, f"launch.num_processes={n}", f"output={tmp_path / str(n)}"])
        assert done.returncode == 0, done.stderr
        contents.append(results.read(tmp_path / str(n)))
    assert contents[1]["num_processes"] == num_processes
    assert contents[0]["protocols"] == contents[1]["protocols"]


def test_another_data_set_is_refused_unless_asked_for(toy_overrides, tool, tmp_path):
    other = [*toy_overrides, "eval_dataset.name=pascal_part_116"]
    with pytest.raises(ValueError, match=r"trained on 'toy_pascal_part_116'.*cross_dataset=true"):
        tool.evaluate(compose("eval", other))
    tool.evaluate(compose("eval", [*other, "cross_dataset=true", "evaluator=oracle_obj", "eval.limit_images=1"]))
    content = results.read(tmp_path / "out")
    assert content["cross_dataset"] is True
    assert content["vocabulary"]["num_unseen"] == 0
    assert content["protocols"]["oracle_obj"]["metrics"]["mIoU_unseen"] is None


def test_present_prompts_give_the_same_integers(toy_overrides, tool, tmp_path):
    entries = []
    for prompts in ("all", "present"):
        output = f"output={tmp_path / prompts}"
        tool.evaluate(compose("eval", [*toy_overrides, "evaluator=oracle_obj", f"predictor.prompts={prompts}", output]))
        entries.append(results.read(tmp_path / prompts)["protocols"]["oracle_obj"])
    assert entries[0] == entries[1]


def test_an_interrupted_evaluation_leaves_the_earlier_one_as_it_was(toy_overrides, tool, tmp_path, monkeypatch):
    overrides = [*toy_overrides, "evaluator=oracle_obj", "save_predictions=true"]
    tool.evaluate(compose("eval", overrides))

    def content():
        return {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file() and "/." not in str(p)}

    before = content()

    def interrupted(*args, on_labels, **options):
        def stop(sample, labels):
            raise KeyboardInterrupt

        return run(*args, on_labels=stop, **options)

    monkeypatch.setattr(tool, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tool.evaluate(compose("eval", [*overrides, "eval.limit_images=1"]))
    assert len(before) == 6 and content() == before
    monkeypatch.undo()
    tool.evaluate(compose("eval", [*overrides, "eval.limit_images=1"]))
    after = content()
    assert len(after) == 2 and results.read(tmp_path / "out")["dataset"]["num_images"] == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions", "results.json"]


def test_the_result_goes_to_the_run_directory(toy_overrides, toy_run, tool):
    overrides = [o for o in toy_overrides if not o.startswith("output=")]
    assert tool.output_folder(compose("eval", overrides), "toys") == toy_run
    crossing = compose("eval", [*overrides, "cross_dataset=true"])
    assert tool.output_folder(crossing, "toys") == toy_run / "toys"


def test_the_start_is_logged_stage_by_stage(toy_overrides, tool, capsys, tmp_path):
    tool.evaluate(compose("eval", [*toy_overrides, "evaluator=oracle_obj", "eval.limit_images=1"]))
    lines = re.findall(r"start: (.*), [\d.]+ s", capsys.readouterr().out)
    assert lines[1:] == ["checkpoint", "data set", "network on its device"] and lines[0] == "1 processes"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.json"]


def test_a_missing_checkpoint_is_named(toy_overrides, tool):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tool.evaluate(compose("eval", [*toy_overrides, "ckpt=nowhere"]))
