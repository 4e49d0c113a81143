"""The table on the screen, in the paper's layout: seen, unseen, harmonic per protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

COLUMNS = {
    "mIoU": "mIoU",
    "recall": "Recall",
    "boundary_iou": "Boundary IoU",
    "boundary_iou_d2": "Boundary IoU (authors, d75a599)",
    "boundary_iou_d2_labelled": "Boundary IoU (authors, d92df57)",
}


def table(content: Mapping[str, Any]) -> Table:
    """Rows are protocols and measures; content is that of results.json. The averaging rule is named in the title."""
    rules = sorted({entry["averaging"] for entry in content["protocols"].values()})
    title = f"{content['dataset']['name']} {content['dataset']['split']}, averaging: {', '.join(rules)}"
    if content["synthetic"]:
        title = f"SYNTHETIC DATA, {title}"
    grid = Table(title=title, caption="in percent; a dash means not defined")
    for heading in ("protocol", "measure", "all", "seen", "unseen", "harmonic"):
        grid.add_column(heading, justify="left" if heading in ("protocol", "measure") else "right")
    for name, entry in content["protocols"].items():
        scores = entry["metrics"]
        for key, label in COLUMNS.items():
            if key in scores:
                values = [scores[key], *(scores[f"{key}_{part}"] for part in ("seen", "unseen", "harmonic"))]
                grid.add_row(name, label, *map(_number, values))
    return grid


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
