"""The quickstart's and the table's tools, end to end on a handful of drawn pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.data import catalog
from partseg.data.mapper import TrainMapper
from partseg.utils.config import compose, instantiate
from toy_world.writer import ToyOptions, write_toy

ROOT = Path(__file__).parents[2]


def tool(name: str, *arguments: str) -> str:
    command = [sys.executable, f"tools/{name}.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_quickstart_steps_and_table(tmp_path):
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
    shown = tool("toy_report", str(run), f"data={tmp_path}/data/ToyPascalPart116")
    assert "points over the most frequent part" in shown and "SYNTHETIC" in shown
    assert np.asarray(Image.open(run / "unseen_objects.png")).shape[2] == 3

    tool("toy_table", str(tmp_path / "out"))
    text = (tmp_path / "out" / "table.md").read_text()
    assert "SYNTHETIC" in text and text.count("| PartCLIPSeg | 1 |") == 2
    cost = next(line for line in text.splitlines() if line.startswith("| PartCLIPSeg | ") and "±" not in line)
    assert all(float(cell) > 0 for cell in cost.split("|")[2:6]), "milliseconds and GiB of training and evaluation"
    assert (tmp_path / "out" / "table.png").is_file()
    tool("toy_attention", str(tmp_path / "out"), f"data={tmp_path}/data/ToyPascalPart116")
    text = (tmp_path / "out" / "attention.md").read_text()
    assert "SYNTHETIC" in text and "| PartCLIPSeg | 1 |" in text


def test_a_table_of_nothing_is_refused(tmp_path):
    command = [sys.executable, "tools/toy_table.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "scripts/toy_table.sh" in done.stderr


def test_attention_terms_do_not_depend_on_batches_and_tell_seen_from_unseen(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import toy_attention

    write_toy(tmp_path / "toy", ToyOptions(num_train=1, num_val=16, size=64))
    torch.manual_seed(0)
    overrides = ["experiment=toy_part_clipseg", *(f"criterion.terms.{n}.weight=0" for n in ("object_part", "object"))]
    cfg = compose("train", [*overrides, "criterion.terms.part.weight=0"])
    model, criterion = instantiate(cfg.model).eval(), instantiate(cfg.criterion)
    mapper = TrainMapper(size=64, flip_probability=0)
    dataset = catalog.get("toy_pascal_part_116", split="val", root=str(tmp_path / "toy"), mapper=mapper)
    found = []
    for batch in (3, 16):
        monkeypatch.setattr(toy_attention, "BATCH", batch)
        found.append(toy_attention.mean_terms(model, criterion, dataset))
    for split in ("seen", "unseen"):
        assert found[0][split] == pytest.approx(found[1][split], rel=1e-4)
        assert all(0 <= value <= 1 for value in found[0][split].values())
    assert found[0]["seen"] != found[0]["unseen"]


def test_ablation_differences_pair_equal_seeds(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import toy_table

    def row(value: float) -> np.ndarray:
        return np.full((3, 3), value)

    scores = {
        "part_clipseg": {"seed1": row(30.0), "seed2": row(10.0), "seed3": row(20.0)},
        "no_part": {"seed3": row(17.0), "seed2": row(9.0), "seed4": row(99.0)},
        "cat_seg": {"seed1": row(40.0)},
    }
    minus = toy_table.differences(scores)
    assert list(minus) == ["no_part"] and np.allclose(minus["no_part"][:, 0, 0], [-1.0, -3.0])


def test_a_table_pairs_systems_and_says_what_was_not_measured(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import toy_table

    def run(metrics: dict[str, dict[str, float]], cost: tuple[float, float] | None) -> toy_table.Run:
        protocols = {name: {"metrics": values} for name, values in metrics.items()}
        seconds = {"network": 0.002, "postprocess": 0.001, "loading": 0.0}
        content = {"protocols": protocols, "seconds_per_image": seconds, "peak_memory_bytes": 2**30}
        return toy_table.Run(content, cost)

    def pixels(value: float) -> dict[str, dict[str, float]]:
        scores = {f"mIoU_{split}": value for split in toy_table.SPLITS}
        return dict.fromkeys(toy_table.PROTOCOLS, scores)

    oracle = {"oracle_obj": pixels(9.0)["oracle_obj"]}
    runs = {
        "part_clipseg": {"seed1": run(pixels(20.0), (50.0, 1.5)), "seed2": run(pixels(30.0), (70.0, 1.5))},
        "ops_named": {"seed1": run(oracle, None), "seed2": run(oracle, None)},
        "ops": {
            "seed1": run({"segments": {"AP50": 10.0}}, (90.0, 2.0)),
            "seed2": run({"segments": {"AP50": 14.0}}, None),
        },
    }
    text = toy_table.markdown(runs)
    assert "| PartCLIPSeg | 2 | 25.0 ± 5.0 |" in text
    assert "| OPS, named by PartCLIPSeg | 2 | 9.0 ± 0.0 | 9.0 ± 0.0 | 9.0 ± 0.0 |  |  |" in text
    assert "| PartCLIPSeg | 60 | 1.50 | 3 | 1.00 |" in text and "| OPS, named by PartCLIPSeg |  |  | 3 | 1.00 |" in text
    assert "- OPS: parts found, AP50 of masks without names: all 12.0 ± 2.0" in text
    assert "ops" not in toy_table.scores_of(runs), "it has no answer to any pixel protocol"


def test_ops_table_pairs_equal_seeds_and_says_how_it_was_adapted(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import toy_ops_ablation

    def content(value: float, how: str | None = "inductive") -> dict[str, object]:
        scores = {"segments": {"AP": 1.0, "AP_seen": 2.0, "AP_unseen": value, "AP50_unseen": 3.0}}
        scores["semantic_oracle"] = {"mIoU_unseen": 4.0}
        return {"adaptation": how, "protocols": {name: {"metrics": each} for name, each in scores.items()}}

    found = {"longer": {"seed1": content(10.0, None), "seed2": content(20.0, None)}}
    found["both"] = {"seed2": content(21.0), "seed1": content(13.0), "seed3": content(99.0)}
    text = toy_ops_ablation.markdown(found)
    assert "SYNTHETIC DATA, adaptation: inductive." in text
    assert "| base, as many steps more | 15.00 ± 5.00 (n=2) |" in text
    assert "| OPS (both) | 2.00 ± 1.00 (n=2) |" in text.split("Minus")[1]
