"""Tables and figure of scripts/toy_table.sh: mean and standard error over seeds of what lies in one folder.

    python tools/toy_table.py output/toy_table

Reads <folder>/<system>/seed<k>/results.json and the metrics.jsonl of trainings; writes <folder>/table.md and table.png
(needs the plot extra).
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from partseg.evaluation import results
from partseg.utils import arguments
from partseg.utils.files import write_atomic

SYSTEMS = {
    "clipseg": "CLIPSeg",
    "part_clipseg": "PartCLIPSeg",
    "cat_seg": "CAT-Seg",
    "part_cat_seg": "PartCATSeg",
    "vlpart": "VLPart",
    "cris": "CRIS",
    "part_clipseg_object_first": "PartCLIPSeg, object first",
    "cat_seg_object_first": "CAT-Seg, object first",
    "part_cat_seg_object_first": "PartCATSeg, object first",
    "ops_named": "OPS, named by PartCLIPSeg",
}
ABLATION = {
    "part_clipseg": "PartCLIPSeg",
    "random_towers": "with towers that read and saw nothing",
    "no_object": "without object guidance",
    "no_part": "without part guidance",
    "no_separation": "without separation",
    "no_enhancement": "without enhancement",
    "no_attention": "without separation and enhancement",
    "paper_attention": "both at the paper's weights, ten times the toy's",
}
FULL = "part_clipseg"
"""What the ablated systems are compared with."""

PROTOCOLS = ("oracle_obj", "pred_all", "pred_all_strict")
SPLITS = ("seen", "unseen", "harmonic")
OWN: dict[str, tuple[tuple[str, str], ...]] = {
    "vlpart": (("VLPart: parts found and named, AP50 of masks", "instances/AP50"),),
    "ops": (("OPS: parts found, AP50 of masks without names", "segments/AP50"),),
    "cris_phrases": (("CRIS: masks of phrases, mean IoU", "referring/mean_IoU"),),
}
"""What systems are measured by beside the pixel protocols."""

Scores = dict[str, dict[str, np.ndarray]]
"""system -> seed -> [protocols, splits] in percent; NaN for a protocol that the system has no answer to"""


@dataclass(frozen=True)
class Options:
    folder: Path


def main(options: Options) -> int:
    runs = read(options.folder)
    text = markdown(runs)
    write_atomic(options.folder / "table.md", text.encode())
    figure(scores_of(runs), options.folder / "table.png")
    console = Console(soft_wrap=True, highlight=False)
    console.print(text, markup=False)
    console.print(f"{options.folder / 'table.md'}, {options.folder / 'table.png'}")
    return 0


@dataclass(frozen=True)
class Run:
    """One results.json, and what its training cost: milliseconds a picture, GiB; None if it was trained elsewhere."""

    results: Mapping[str, Any]
    training: tuple[float, float] | None

    def metric(self, name: str) -> float:
        """In percent; NaN where it was not measured."""
        evaluator, _, metric = name.partition("/")
        return float(self.results["protocols"].get(evaluator, {"metrics": {}})["metrics"].get(metric, np.nan))


def read(folder: Path) -> dict[str, dict[str, Run]]:
    """system -> seed -> run; ValueError where real and synthetic results would mix."""
    runs: dict[str, dict[str, Run]] = {}
    for system in dict.fromkeys([*SYSTEMS, *OWN, *ABLATION]):
        for path in sorted((folder / system).glob("seed*/results.json")):
            content = results.read(path)
            if not content["synthetic"]:
                raise ValueError(f"{path} is not of synthetic data: move it away")
            runs.setdefault(system, {})[path.parent.name] = Run(content, training_cost(path.parent / "metrics.jsonl"))
    if not runs:
        raise FileNotFoundError(f"no <system>/seed<k>/results.json under {folder}: run scripts/toy_table.sh")
    return runs


def training_cost(path: Path) -> tuple[float, float] | None:
    """Milliseconds per picture (median over the lines of the log) and the largest memory in GiB."""
    if not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [line for line in lines if "train/images_per_second" in line]
    rate = np.median([line["train/images_per_second"] for line in steps])
    return 1000 / float(rate), max(line["train/memory_gib"] for line in steps)


def scores_of(runs: Mapping[str, Mapping[str, Run]]) -> Scores:
    """The pixel protocols of the systems that have any."""
    names = [[f"{protocol}/mIoU_{split}" for split in SPLITS] for protocol in PROTOCOLS]
    scores = {
        system: {seed: np.array([[run.metric(n) for n in row] for row in names]) for seed, run in seeds.items()}
        for system, seeds in runs.items()
    }
    return {system: seeds for system, seeds in scores.items() if not np.isnan(of_seeds(seeds)).all()}


def standard_error(values: np.ndarray) -> np.ndarray:
    """Of the mean over the first axis; NaN for one value."""
    count = len(values)
    return values.std(0, ddof=1) / count**0.5 if count > 1 else np.full(values.shape[1:], np.nan)


def of_seeds(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """[seeds, protocols, splits]"""
    return np.stack(list(rows.values()))


def differences(scores: Scores) -> dict[str, np.ndarray]:
    """What each ablated system has more than the full one at the same seed, [seeds, protocols, splits]."""
    minus = {}
    for system in ABLATION:
        seeds = sorted(scores.get(system, {}).keys() & scores.get(FULL, {}).keys())
        if system != FULL and seeds:
            minus[system] = np.stack([scores[system][seed] - scores[FULL][seed] for seed in seeds])
    return minus


# ---- what is written -------------------------------------------------------------------------------------------------
def markdown(runs: Mapping[str, Mapping[str, Run]]) -> str:
    """Scores of systems, what they cost, the ablation, and its differences to the full system."""
    scores = scores_of(runs)
    heads = [f"{protocol} {split}" for protocol in PROTOCOLS for split in SPLITS]
    systems = {name: of_seeds(scores[name]) for name in SYSTEMS if name in scores}
    ablated = {name: of_seeds(scores[name]) for name in ABLATION if name in scores}
    lines = ["SYNTHETIC DATA. mIoU in percent, mean ± standard error over seeds, weights after the last step."]
    lines += _table(heads, systems, SYSTEMS)
    lines += ["", "What they cost, and what they are measured by beside the pixel protocols:", *_costs(runs)]
    lines += ["", *(f"- {label}: {text}" for label, text in _own(runs))]
    lines += ["", "PartCLIPSeg with one thing changed:", *_table(heads, ablated, ABLATION)]
    lines += [
        "",
        "The same minus PartCLIPSeg at the same seed:",
        *_table(heads, differences(scores), ABLATION, sign="+"),
    ]
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Mapping[str, np.ndarray], names: Mapping[str, str], sign: str = "") -> list[str]:
    lines = ["", f"| system | seeds | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for name, values in rows.items():
        cells = [_cell(m, e, sign) for m, e in zip(values.mean(0).ravel(), standard_error(values).ravel())]
        lines.append(f"| {names[name]} | {len(values)} | {' | '.join(cells)} |")
    return lines


def _cell(mean: float, error: float, sign: str = "") -> str:
    if np.isnan(mean):
        return ""
    return f"{mean:{sign}.1f}" + ("" if np.isnan(error) else f" ± {error:.1f}")  # one seed has no error


def _costs(runs: Mapping[str, Mapping[str, Run]]) -> list[str]:
    heads = ("training, ms a picture", "GiB", "evaluation, ms a picture", "GiB")
    lines = ["", f"| system | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name in (name for name in SYSTEMS if name in runs):
        several = list(runs[name].values())
        trained = [run.training for run in several if run.training is not None]
        cells = [_mean([each[i] for each in trained], digits) for i, digits in ((0, 0), (1, 2))]
        cells.append(_mean([1000 * sum(run.results["seconds_per_image"].values()) for run in several], 0))
        cells.append(_mean([run.results["peak_memory_bytes"] / 2**30 for run in several], 2))
        lines.append(f"| {SYSTEMS[name]} | {' | '.join(cells)} |")
    return lines


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f}" if values else ""


def _own(runs: Mapping[str, Mapping[str, Run]]) -> list[tuple[str, str]]:
    rows = []
    for system, metrics in OWN.items():
        for label, metric in metrics:
            if system not in runs:
                continue
            said = [(split, _over_seeds(runs[system], f"{metric}_{split}")) for split in SPLITS]
            said.append(("all", _over_seeds(runs[system], metric)))
            rows.append((label, ", ".join(f"{split} {text}" for split, text in said if text)))
    return rows


def _over_seeds(seeds: Mapping[str, Run], metric: str) -> str:
    values = np.array([run.metric(metric) for run in seeds.values()])
    return _cell(float(values.mean()), float(standard_error(values)))


def figure(scores: Scores, path: Path) -> None:
    """Seen and unseen bars with standard errors, one panel per protocol; dots are the seeds."""
    import matplotlib  # the plot extra

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = {**SYSTEMS, **ABLATION}
    shown = [name for name in labels if name in scores]
    drawing, panels = plt.subplots(1, 2, figsize=(11, 0.5 * len(shown) + 1.6), sharey=True)
    places = np.arange(len(shown))
    for index, (panel, protocol) in enumerate(zip(panels, PROTOCOLS)):
        for shift, split, color in ((-0.2, 0, "#33658a"), (0.2, 1, "#f26419")):
            values = [of_seeds(scores[name])[:, index, split] for name in shown]
            errors = [float(np.nan_to_num(standard_error(v))) for v in values]
            means = [float(np.nan_to_num(v.mean())) for v in values]
            panel.barh(places + shift, means, 0.36, xerr=errors, color=color, label=SPLITS[split])
            for place, v in zip(places, values):
                panel.plot(v, np.full(len(v), place + shift), "k.", markersize=3)
        panel.set_title(f"{protocol} (SYNTHETIC data)")
        panel.set_xlabel("mIoU, percent")
    panels[0].set_yticks(places, [labels[name] for name in shown])
    panels[0].invert_yaxis()
    panels[0].legend()
    drawing.tight_layout()
    drawing.savefig(path, dpi=120)
    plt.close(drawing)


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
