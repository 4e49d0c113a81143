"""Table of scripts/toy_ops_ablation.sh: average precision of parts, mean and standard error over seeds.

    python tools/toy_ops_ablation.py output/toy_ops_ablation

Reads <folder>/seed<k>/toy_open_parts/score_<stage>/results.json; writes <folder>/ablation.md.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from partseg.evaluation import results
from partseg.reproduce.collect import summarise
from partseg.utils import arguments
from partseg.utils.files import write_atomic

STAGES = {
    "base": "base",
    "longer": "base, as many steps more",
    "self_training": "+ ST",
    "self_supervision": "+ SS",
    "both": "OPS (both)",
}
COLUMNS = {
    "AP unseen": ("segments", "AP_unseen"),
    "AP50 unseen": ("segments", "AP50_unseen"),
    "AP": ("segments", "AP"),
    "AP seen": ("segments", "AP_seen"),
    "oracle mIoU unseen": ("semantic_oracle", "mIoU_unseen"),
}

Found = dict[str, dict[str, Mapping[str, Any]]]
"""stage -> seed -> results.json"""


@dataclass(frozen=True)
class Options:
    folder: Path


def main(options: Options) -> int:
    text = markdown(read(options.folder))
    write_atomic(options.folder / "ablation.md", text.encode())
    Console(soft_wrap=True).print(text, markup=False, highlight=False)
    return 0


def read(folder: Path) -> Found:
    """Results of all stages that have some; ValueError where real and synthetic ones would mix."""
    found: Found = {}
    for stage in STAGES:
        for path in sorted(folder.glob(f"seed*/toy_open_parts/score_{stage}/results.json")):
            content = results.read(path)
            if not content["synthetic"]:
                raise ValueError(f"{path} is not of synthetic data: move it away")
            found.setdefault(stage, {})[path.parents[2].name] = content
    if not found:
        raise FileNotFoundError(f"no seed<k>/toy_open_parts/score_*/ under {folder}: run scripts/toy_ops_ablation.sh")
    return found


def markdown(found: Found) -> str:
    """Scores, a row per stage, and what each has more than the base of the same seed trained as long."""
    adapted = sorted({content["adaptation"] for rows in found.values() for content in rows.values()} - {None})
    head = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines = [
        f"SYNTHETIC DATA, adaptation: {', '.join(adapted) or 'none'}. Percent, mean ± standard error over seeds.",
        "",
        *head,
        *(_row(stage, [scores(content) for content in rows.values()]) for stage, rows in found.items()),
    ]
    reference = found.get("longer", {})
    minus = {
        stage: [[a - b for a, b in zip(scores(rows[s]), scores(reference[s]))] for s in sorted(rows.keys() & reference)]
        for stage, rows in found.items()
        if stage not in ("base", "longer")
    }
    if any(minus.values()):
        lines += ["", f"Minus {STAGES['longer']!r} with the same seed:", "", *head]
        lines += [_row(stage, values) for stage, values in minus.items() if values]
    return "\n".join(lines) + "\n"


def scores(content: Mapping[str, Any]) -> list[float]:
    """The columns' values in percent."""
    return [content["protocols"][protocol]["metrics"][key] for protocol, key in COLUMNS.values()]


def _row(stage: str, values: list[list[float]]) -> str:
    cells = [summarise(column, published=None, synthetic=False).measured for column in zip(*values)]
    return f"| {STAGES[stage]} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
