"""The table on the screen: all, seen, unseen, harmonic per evaluator and measure, as the papers lay it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

MEASURES = {
    "mIoU": "mIoU",
    "recall": "Recall",
    "boundary_iou": "Boundary IoU",
    "boundary_iou_d2": "Boundary IoU (authors, d75a599)",
    "boundary_iou_d2_labelled": "Boundary IoU (authors, d92df57)",
    "AP": "mask AP",
    "AP50": "mask AP50",
    "AR": "mask AR",
    "box_AP": "box AP",
    "box_AP50": "box AP50",
    "box_AR": "box AR",
    "AP_opart": "mask AP over part names",
    "box_R50@100": "box recall of 100",
    "box_R50@1000": "box recall of 1,000",
    "mean_IoU": "mean IoU",
    "overall_IoU": "overall IoU",
    "P@0.5": "Precision@0.5",
    "P@0.7": "Precision@0.7",
    "P@0.9": "Precision@0.9",
}
"""Measures that the table shows, where an evaluator has them; results.json has all."""


def table(content: Mapping[str, Any]) -> Table:
    """Rows are evaluators and measures; content is that of results.json. The averaging rule is named in the title."""
    entries = content["protocols"]
    rules = sorted({entry["averaging"] for entry in entries.values() if "averaging" in entry})
    title = f"{content['dataset']['name']} {content['dataset']['split']}"
    title += f", averaging: {', '.join(rules)}" if rules else ""
    if content["synthetic"]:
        title = f"SYNTHETIC DATA, {title}"
    grid = Table(title=title, caption="in percent; a dash means not defined")
    for heading in ("evaluator", "measure", "all", "seen", "unseen", "harmonic"):
        grid.add_column(heading, justify="left" if heading in ("evaluator", "measure") else "right")
    for name, entry in entries.items():
        scores = entry["metrics"]
        for key, label in MEASURES.items():
            if key in scores:
                values = [scores[key], *(scores.get(f"{key}_{part}") for part in ("seen", "unseen", "harmonic"))]
                grid.add_row(name, label, *map(_number, values))
    return grid


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
