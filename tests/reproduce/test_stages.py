"""Recipes of stages: every stage of every file composes, at full size and as a smoke run, and mistakes are named."""

from pathlib import Path

import pytest

from partseg.reproduce.plan import Options
from partseg.reproduce.stages import jobs, load_recipe
from partseg.utils.config import compose

FILES = sorted((Path(__file__).parents[2] / "scripts" / "stages").glob("*.yaml"))


@pytest.mark.parametrize("smoke", [False, True], ids=["full", "smoke"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_stage_composes(path, smoke, tmp_path):
    planned = jobs(load_recipe(path), Options(tmp_path, (1,), smoke=smoke))
    tops = {"train": "train", "export": "export", "evaluate": "eval"}
    for job in planned:
        config = compose(tops[job.kind], list(job.command[2:]))
        if smoke:
            assert config.train.iterations == 2, job.directory
        if job.kind == "train":
            assert config.train.batch_size % config.train.accumulation == 0


def test_open_parts_has_both_ablations(root, tmp_path):
    """Pseudo labels alone, the two losses alone, and both; half of the pictures of the last two have no labels."""
    planned = jobs(load_recipe(root / "scripts" / "stages" / "open_parts.yaml"), Options(tmp_path, (1,)))
    trained = {job.directory.name: compose("train", list(job.command[2:])) for job in planned if job.kind == "train"}
    assert list(trained) == ["base", "self_training", "self_supervision", "both"]
    for name, config in trained.items():
        if name == "base":
            continue
        weights = {key: source.weight for key, source in config.dataset.sources.items()}
        assert config.train.accumulation == sum(weights.values()), "every step sees all sources"
        assert ("pseudo" in weights) == (name != "self_supervision")
        assert weights.get("unlabelled", 0) == (0 if name == "self_training" else sum(weights.values()) / 2)
        active = {key for key, term in config.criterion.terms.items() if term.weight > 0}
        assert ({"centroid", "affinity"} <= active) == (name != "self_training")
        assert config.dataset.name == "pascal_part_116" and "PascalPart116" in config.eval_dataset.root


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_open_parts_runs_to_its_end(root, tmp_path):
    import json
    import subprocess
    import sys

    command = [sys.executable, "tools/run_stages.py", "scripts/stages/open_parts.yaml", "--smoke", "--output"]
    done = subprocess.run([*command, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = {name: tmp_path / "open_parts" / f"score_{name}" / "results.json" for name in ("base", "both")}
    adapted = {name: json.loads(path.read_text())["adaptation"] for name, path in found.items()}
    assert adapted == {"base": None, "both": "transductive"}
