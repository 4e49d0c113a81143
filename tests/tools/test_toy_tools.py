"""The quickstart's and the ablation's tools, end to end on a handful of drawn pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from partseg.data.toy.writer import ToyOptions, write_toy

ROOT = Path(__file__).parents[2]


def tool(name: str, *arguments: str) -> str:
    command = [sys.executable, f"tools/{name}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_quickstart_steps_and_ablation_table(tmp_path):
    write_toy(tmp_path / "data" / "ToyPascalPart116", ToyOptions(num_train=8, num_val=16, size=64))
    settings = [f"data_root={tmp_path / 'data'}", f"output_root={tmp_path / 'out'}", "experiment=toy_part_clipseg"]
    settings += ["name=part_clipseg/seed1", "train.iterations=1", "train.batch_size=2", "~hooks.evaluate"]
    settings += ["~hooks.visualize", "best.metrics=[]"]
    run = tmp_path / "out" / "part_clipseg" / "seed1"

    tool("toy_baselines", *settings)
    frequent = json.loads((run / "baselines" / "most_frequent_part" / "results.json").read_text())
    assert frequent["synthetic"] and list(frequent["protocols"]) == ["oracle_obj"]
    assert "kept" in tool("toy_baselines", *settings)

    tool("train_net", *settings)
    tool("eval_net", *settings, f"ckpt={run}", "save_predictions=true")
    shown = tool("toy_report", str(run), "--data", str(tmp_path / "data" / "ToyPascalPart116"))
    assert "points over the most frequent part" in shown and "SYNTHETIC" in shown
    assert np.asarray(Image.open(run / "unseen_objects.png")).shape[2] == 3

    tool("toy_ablation", str(tmp_path / "out"))
    text = (tmp_path / "out" / "ablation.md").read_text()
    assert "SYNTHETIC" in text and "| PartCLIPSeg | 1 |" in text
    assert (tmp_path / "out" / "ablation.png").is_file()


def test_ablation_table_counts_seeds_and_refuses_what_is_not_there(tmp_path):
    command = [sys.executable, "tools/toy_ablation.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "scripts/toy_ablation.sh" in done.stderr
