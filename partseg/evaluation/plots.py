"""Confusion matrix and per-class bars as pictures. Needs the `plot` extra (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partseg.evaluation.confusion import within_objects

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check() -> None:
    """ImportError that says what to install, before an evaluation that ends in pictures."""
    if find_spec("matplotlib") is None:
        raise ImportError("pictures need matplotlib: pip install matplotlib, or leave out plots=true")


def save_plots(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write confusion_<name>.png and classes_<name>.png per protocol; needs matplotlib (`check`)."""
    check()
    from matplotlib.figure import Figure

    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, entry in content["protocols"].items():
        if entry.get("kind", "pixels") != "pixels":
            continue
        for kind, draw in (("confusion", _confusion), ("classes", _classes)):
            path = folder / f"{kind}_{name}.png"
            figure = Figure(layout="constrained")
            draw(figure, entry, f"{content['dataset']['name']}, {name}")
            part = path.with_name(f".{path.name}.part")
            figure.savefig(part, format="png", dpi=120)
            part.replace(path)
            written.append(path)
    return written


def _names(entry: Mapping[str, Any]) -> list[str]:
    return [f"{c['object']}'s {c['part']}" for c in entry["classes"]]


def _confusion(figure: Figure, entry: Mapping[str, Any], title: str) -> None:
    """A panel per object whose rows add up to 1: as what its parts' pixels are predicted."""
    objects = within_objects(entry)
    columns = min(4, max(1, len(objects)))
    rows = -(-len(objects) // columns)
    figure.set_size_inches(3.6 * columns, 0.6 + rows * max((1.6 + 0.16 * len(o.parts) for o in objects), default=2))
    figure.suptitle(f"{title}: rows are the truth, shares of its pixels")
    for number, found in enumerate(objects, 1):
        axes = figure.add_subplot(rows, columns, number)
        image = axes.imshow(found.shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
        axes.set_title(found.name, fontsize=8)
        axes.set_xticks(range(len(found.columns)), found.columns, rotation=90, fontsize=6)
        axes.set_yticks(range(len(found.parts)), found.parts, fontsize=6)
        if number == len(objects):
            figure.colorbar(image, ax=axes, shrink=0.8)


def _classes(figure: Figure, entry: Mapping[str, Any], title: str) -> None:
    """IoU of the classes that occur in the truth, best first; unseen ones in another colour."""
    shown = [(c["iou"], n, c["seen"]) for c, n in zip(entry["classes"], _names(entry)) if c["num_pixels"]]
    shown.sort()
    figure.set_size_inches(6, max(3.0, 1 + 0.16 * len(shown)))
    axes = figure.add_subplot()
    places = range(len(shown))
    axes.barh(places, [iou for iou, _, _ in shown], color=["tab:blue" if seen else "tab:orange" for *_, seen in shown])
    axes.set_yticks(places, [name for _, name, _ in shown], fontsize=6)
    axes.set_ylim(-1, len(shown))
    axes.set_xlim(0, 100)
    axes.set_xlabel("IoU in percent (orange: unseen)")
    axes.set_title(title)
