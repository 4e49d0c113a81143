"""Table and figure of scripts/toy_ablation.sh: mean and standard error over seeds of what lies in one folder.

    python tools/toy_ablation.py output/toy_ablation

Reads <folder>/<system>/seed<k>/results.json; writes <folder>/ablation.md and ablation.png (needs the plot extra).
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from partseg.evaluation import results
from partseg.utils import arguments
from partseg.utils.files import write_atomic

SYSTEMS = {
    "clipseg": "CLIPSeg",
    "part_clipseg": "PartCLIPSeg",
    "no_object": "without object guidance",
    "no_part": "without part guidance",
    "no_separation": "without separation",
    "no_enhancement": "without enhancement",
    "no_attention": "without separation and enhancement",
    "more_none": "the last, continued without both",
    "more_own": "the last, continued with both at a tenth of the paper's weights",
    "more_paper": "the last, continued with both at the paper's weights",
    "more_ten": "the last, continued with both at ten times the paper's weights",
}
PROTOCOLS = ("oracle_obj", "pred_all")
SPLITS = ("seen", "unseen", "harmonic")

FULL, CONTINUED = "part_clipseg", "more_none"
"""What the systems are compared with, and what those that start from trained weights are."""

Scores = dict[str, dict[str, np.ndarray]]
"""system -> seed -> [protocols, splits] in percent"""


@dataclass(frozen=True)
class Options:
    folder: Path


def main(options: Options) -> int:
    folder, scores = options.folder, read(options.folder)
    text = markdown(scores)
    write_atomic(folder / "ablation.md", text.encode())
    figure(scores, folder / "ablation.png")
    Console(soft_wrap=True).print(text, markup=False, highlight=False)
    Console(soft_wrap=True).print(f"{folder / 'ablation.md'}, {folder / 'ablation.png'}", highlight=False)
    return 0


def read(folder: Path) -> Scores:
    """Scores of all systems that have results; ValueError where real and synthetic results would mix."""
    scores: Scores = {}
    for system in SYSTEMS:
        for path in sorted((folder / system).glob("seed*/results.json")):
            content = results.read(path)
            if not content["synthetic"]:
                raise ValueError(f"{path} is not of synthetic data: move it away")
            entries = content["protocols"]
            row = [[entries[p]["metrics"][f"mIoU_{split}"] for split in SPLITS] for p in PROTOCOLS]
            scores.setdefault(system, {})[path.parent.name] = np.array(row, float)
    if not scores:
        raise FileNotFoundError(f"no <system>/seed<k>/results.json under {folder}: run scripts/toy_ablation.sh")
    return scores


def standard_error(values: np.ndarray) -> np.ndarray:
    """Of the mean over the first axis; NaN for one value."""
    count = len(values)
    return values.std(0, ddof=1) / count**0.5 if count > 1 else np.full(values.shape[1:], np.nan)


def of_seeds(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """[seeds, protocols, splits]"""
    return np.stack(list(rows.values()))


def differences(scores: Scores) -> dict[str, np.ndarray]:
    """What each system has more than the one it is compared with at the same seed, [seeds, protocols, splits]."""
    minus = {}
    for system, rows in scores.items():
        reference = CONTINUED if system.startswith("more_") else FULL
        seeds = sorted(rows.keys() & scores.get(reference, {}).keys())
        if system != reference and seeds:
            minus[system] = np.stack([rows[seed] - scores[reference][seed] for seed in seeds])
    return minus


def markdown(scores: Scores) -> str:
    """A table of scores and one of differences to the full system, one row per system."""
    heads = [f"{protocol} {split}" for protocol in PROTOCOLS for split in SPLITS]
    head = [f"| system | seeds | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    lines = [
        "SYNTHETIC DATA. mIoU in percent, mean ± standard error over seeds, weights after the last iteration.",
        "",
        *head,
        *(_row(system, of_seeds(rows), sign="") for system, rows in scores.items()),
    ]
    minus = differences(scores)
    if minus:
        title = f"Minus {SYSTEMS[FULL]} with the same seed (continued networks: minus the one continued without both):"
        lines += ["", title, "", *head]
        lines += [_row(system, values, sign="+") for system, values in minus.items()]
    return "\n".join(lines) + "\n"


def _row(system: str, values: np.ndarray, *, sign: str) -> str:
    cells = [f"{m:{sign}.1f} ± {e:.1f}" for m, e in zip(values.mean(0).ravel(), standard_error(values).ravel())]
    return f"| {SYSTEMS[system]} | {len(values)} | {' | '.join(cells)} |"


def figure(scores: Scores, path: Path) -> None:
    """Seen and unseen bars with standard errors, one panel per protocol; dots are the seeds."""
    import matplotlib  # the plot extra

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawing, panels = plt.subplots(1, len(PROTOCOLS), figsize=(11, 0.6 * len(scores) + 1.6), sharey=True)
    places = np.arange(len(scores))
    for index, (panel, protocol) in enumerate(zip(panels, PROTOCOLS)):
        for shift, split, color in ((-0.2, 0, "#33658a"), (0.2, 1, "#f26419")):
            values = [of_seeds(rows)[:, index, split] for rows in scores.values()]
            errors = [float(np.nan_to_num(standard_error(v))) for v in values]
            panel.barh(places + shift, [v.mean() for v in values], 0.36, xerr=errors, color=color, label=SPLITS[split])
            for place, v in zip(places, values):
                panel.plot(v, np.full(len(v), place + shift), "k.", markersize=3)
        panel.set_title(f"{protocol} (synthetic data)")
        panel.set_xlabel("mIoU, percent")
    panels[0].set_yticks(places, [SYSTEMS[system] for system in scores])
    panels[0].invert_yaxis()
    panels[0].legend()
    drawing.tight_layout()
    drawing.savefig(path, dpi=120)
    plt.close(drawing)


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
