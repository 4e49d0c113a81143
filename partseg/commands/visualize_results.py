"""A page of a finished evaluation: scores, training curves, classes, part sizes, confusion, worst and best images.

    partseg eval ckpt=output/my_run save_predictions=true ...
    partseg report run=output/my_run

The page is one HTML file that opens without a server and asks nothing of a network. Arguments are key=value:
    run         folder with results.json and predictions/ (required)
    output      the page (default: <run>/report.html)
    evaluator   which protocol's predictions are shown (default: each that has predictions, first one first)
    images      worst and best images shown of each (default 6)
    root        folder of the data set (default: where it was when it was evaluated)
    attention   false leaves out what the network looked at, and needs no checkpoint (default true)
    ckpt        checkpoint for the attention (default: the one that was evaluated)
    plugins     module of yours that the run's classes are from; may be given several times
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from partseg import api
from partseg.data import io
from partseg.data.dataset import PartSegDataset
from partseg.data.mapper import EvalMapper
from partseg.engine.writers import read_metrics
from partseg.evaluation import results
from partseg.evaluation.confusion import within_objects
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictions import read_prediction
from partseg.labels import IGNORE_LABEL
from partseg.photo_prediction import shrunk
from partseg.structures import Sample
from partseg.system import Explains
from partseg.utils import arguments, page
from partseg.utils.config import instantiate, stored
from partseg.utils.files import inside, write_atomic
from partseg.utils.heat import heat_bar, heat_picture, heat_scale

SIDE = 560

GIVEN = {
    "none": "Nothing is given: the objects and their parts are found.",
    "truth": "The objects are given, their parts are found.",
    "given": "The objects are those of a segmenter, their parts are found.",
}
"""What a protocol shows of the objects, in a reader's words."""

MEANS = {
    "mIoU": "mIoU",
    "mIoU_seen": "seen",
    "mIoU_unseen": "unseen",
    "mIoU_harmonic": "harmonic",
    "fwIoU": "fwIoU",
    "pACC": "pACC",
}
"""Metrics of the table and how its head calls them: six columns fit on a phone."""

SIZES = (0, 0.001, 0.003, 0.01, 0.03, 0.1, 1)
"""Borders of the classes of part sizes, shares of an image."""


@dataclass(frozen=True)
class Options:
    run: Path
    output: Path | None = None
    evaluator: str | None = None
    images: int = 6
    root: Path | None = None
    attention: bool = True
    ckpt: Path | None = None
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """One image: mean IoU over the classes that its truth holds, and the share of counted pixels that are right.

    `parts` are (share of the image, IoU in 0..1) of each of these classes.
    """

    index: int
    name: str
    iou: float
    accuracy: float
    parts: tuple[tuple[float, float], ...] = ()


def main(options: Options) -> int:
    content = results.read(options.run)
    folder = options.run if options.run.is_dir() else options.run.parent
    dataset = open_dataset(content, options.root, options.plugins)
    console = Console(soft_wrap=True)
    segmenter = open_segmenter(content, options, console) if options.attention else None
    names = evaluators_with_predictions(content, folder, options.evaluator)
    body = [summary(content, folder.resolve().name), training(folder)]
    for name in names:
        entry, predictions = content["protocols"][name], folder / "predictions" / name
        node = stored(content["config"]["evaluator"][name], group="evaluator", plugins=options.plugins)
        evaluator = instantiate(node)
        scored = score_images(dataset, evaluator, predictions, title=f"scoring {name}", console=console)
        body.append(
            f'<h2 id="{escape(name)}">{escape(name)}</h2><p class="note">{GIVEN[evaluator.protocol.objects]}</p>'
        )
        body += [class_bars(entry), by_size(scored), confusion(entry)]
        shown = options.images
        groups = [("Worst images", scored[:shown]), ("Best images", scored[::-1][:shown])]
        if len(scored) < 2 * shown:  # nothing twice
            groups = [("All images, worst first", scored)]
        for title, some in groups:
            body.append(f'<h2>{title}, {escape(name)}</h2><div class="cards">')
            body += [card(dataset, evaluator, predictions, one, segmenter) for one in some]
            body.append("</div>")
    output = options.output or folder / "report.html"
    html = page.document(f"{content['dataset']['name']}: {folder.resolve().name}", "".join(body))
    write_atomic(output, html.encode())
    console.print(f"{output} ({output.stat().st_size / 1e6:.1f} MB): open it in a browser")
    return 0


def open_dataset(content: Mapping[str, Any], root: Path | None, plugins: Sequence[str]) -> PartSegDataset:
    """The data set that was evaluated; ValueError when its files are others now."""
    node = dict(content["config"]["eval_dataset"]) | ({} if root is None else {"root": str(root)})
    settings = content["config"]["eval"]
    checked = stored(node, group="dataset", plugins=plugins)
    dataset = instantiate(checked, split=settings["split"], mapper=EvalMapper())
    if settings["limit_images"] is not None:
        dataset = dataset.subset(range(min(settings["limit_images"], len(dataset))))
    if dataset.manifest_hash != content["dataset"]["manifest_hash"]:
        raise ValueError(
            f"the images under root={node['root']} are not the ones that were evaluated ({len(dataset)} now, "
            f"{content['dataset']['num_images']} then); give root=<the folder used then> or evaluate again"
        )
    return dataset


def open_segmenter(content: Mapping[str, Any], options: Options, console: Console) -> api.Segmenter | None:
    """The evaluated model, or None with a word why there will be no attention."""
    path = options.ckpt or (Path(content["checkpoint"]["path"]) if content["checkpoint"] else None)
    if path is None or not path.exists():
        console.print(
            f"no attention: the checkpoint {path or '(predictions came from files)'} is not there; give ckpt="
        )
        return None
    segmenter = api.load(path, plugins=options.plugins)
    if not isinstance(segmenter.model, Explains):
        console.print(f"no attention: {type(segmenter.model).__name__} does not show where it looked")
        return None
    return segmenter


def evaluators_with_predictions(content: Mapping[str, Any], folder: Path, wanted: str | None) -> list[str]:
    known = list(content["protocols"])
    if wanted is not None and wanted not in known:
        raise ValueError(f"evaluator={wanted} was not evaluated; there are {known}")
    names = [n for n in ([wanted] if wanted else known) if inside(folder / "predictions", n).is_dir()]
    if not names:
        raise FileNotFoundError(
            f"no predictions under {folder / 'predictions'}; run partseg eval with save_predictions=true"
        )
    return names


def score_images(
    dataset: PartSegDataset, evaluator: PixelEvaluator, folder: Path, *, title: str, console: Console
) -> list[Scored]:
    """Images with at least one counted pixel, worst first."""
    scored = []
    for index in track(range(len(dataset)), title, console=console, disable=not console.is_terminal):
        sample, truth, predicted = read_one(dataset, evaluator, folder, index)
        counted = truth != IGNORE_LABEL
        classes = np.unique(truth[counted])
        if not len(classes):
            continue
        right = counted & (truth == predicted)
        ious = [
            (right & (truth == k)).sum() / max(1, (counted & ((truth == k) | (predicted == k))).sum())
            for k in classes.tolist()
        ]
        shares = [float((truth == k).mean()) for k in classes.tolist()]
        accuracy = 100 * float(right.sum() / counted.sum())
        parts = tuple(zip(shares, map(float, ious)))
        scored.append(Scored(index, sample.name, 100 * float(np.mean(ious)), accuracy, parts))
    return sorted(scored, key=lambda one: (one.iou, one.accuracy, one.name))


def read_one(
    dataset: PartSegDataset, evaluator: PixelEvaluator, folder: Path, index: int
) -> tuple[Sample, np.ndarray, np.ndarray]:
    """(sample, truth that the protocol counts, predicted labels)."""
    sample = dataset[index]
    truth = evaluator.protocol.truth(sample, dataset.vocabulary).labels
    return sample, truth.numpy(), read_prediction(folder, sample, len(dataset.vocabulary)).numpy()


def card(
    dataset: PartSegDataset, evaluator: PixelEvaluator, folder: Path, one: Scored, segmenter: api.Segmenter | None
) -> str:
    """Ground truth beside prediction beside attention."""
    sample, truth, predicted = read_one(dataset, evaluator, folder, one.index)
    names = dataset.vocabulary.object_parts
    image = np.asarray(io.read_image(sample.file_name))
    small, small_truth = shrunk(image, truth, SIDE)
    _, small_predicted = shrunk(image, predicted, SIDE)
    cells = [page.viewer(small, small_truth, names, caption="ground truth")]
    cells.append(page.viewer(small, small_predicted, names, caption="prediction"))
    if segmenter is not None:
        maps = segmenter.attention(image, torch.from_numpy(predicted), dataset.vocabulary)
        tiny, _ = shrunk(image, truth, SIDE // 2)
        largest = sorted(maps, key=lambda name: -int((predicted == names.index(name)).sum()))[:6]
        if largest:
            scale = heat_scale([maps[name] for name in largest])
            heats = [heat_picture(tiny, maps[name], scale=scale) for name in largest]
            caption = "attention behind each part, on one scale"
            cells.append(page.figures(heats, largest, caption=caption, scale=heat_bar(scale, width=200)))
    return (
        f'<div class="panel card"><h3>{escape(one.name)}<span>mean IoU {one.iou:.1f}, pixels right {one.accuracy:.1f} %'
        f'</span></h3><div class="row">{"".join(cells)}</div></div>'
    )


def summary(content: Mapping[str, Any], run: str) -> str:
    """Title, what was evaluated, and the table of means."""
    rows = [
        [name, *("none" if (v := entry["metrics"].get(key)) is None else f"{v:.2f}" for key in MEANS)]
        for name, entry in content["protocols"].items()
    ]
    data, checkpoint = content["dataset"], content["checkpoint"]
    words = [f"{data['num_images']} images of {data['name']} ({data['split']})"]
    words.append("predictions from files" if checkpoint is None else f"iteration {checkpoint['iteration']}")
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in content["protocols"])
    drawn = (
        "<p class='warning'>Drawn pictures, not photographs: these scores say nothing about photographs.</p>"
        if content["synthetic"]
        else ""
    )
    return (
        f"<h1>{escape(run)}</h1>{drawn}<p class='note'>{escape(', '.join(words))}. Scores in percent; seen, unseen and "
        "harmonic are means of mIoU.</p>"
        f'<div class="panel">{page.table(("protocol", *MEANS.values()), rows)}</div>'
        f'<p><nav class="tabs">{links}</nav></p>'
    )


def class_bars(entry: Mapping[str, Any]) -> str:
    """IoU of the classes that occur in the truth, best first; unseen ones in orange, those at 0 by name alone."""
    shown = [c for c in entry["classes"] if c["num_pixels"]]
    shown.sort(key=lambda c: -(c["iou"] or 0))
    bars = [page.Bar(f"{c['object']}'s {c['part']}", c["iou"], not c["seen"]) for c in shown]
    chart = page.bars([bar for bar in bars if bar.value])
    missed = ", ".join(bar.name for bar in bars if not bar.value)
    note = f'<p class="note">At 0: {escape(missed)}.</p>' if missed else ""
    return (
        f'<p class="note">IoU per class. Orange: object not seen in training.</p><div class="panel">{chart}</div>{note}'
    )


def confusion(entry: Mapping[str, Any]) -> str:
    """Within each object: which part its pixels were taken for, another object's, or background."""
    tables = [
        f'<div class="panel"><h3>{escape(found.name)}</h3>'
        f"{page.matrix(found.shares, found.parts, columns=found.columns)}</div>"
        for found in within_objects(entry)
    ]
    note = (
        "Confusion within each object: rows are the truth, columns what was predicted; point at a cell for its share."
    )
    return f'<p class="note">{note}</p><div class="objects">{"".join(tables)}</div>'


def by_size(scored: Sequence[Scored]) -> str:
    """Mean IoU of parts of like size: what is small is hard, whatever it is called."""
    found = [pair for one in scored for pair in one.parts]
    bars = []
    for low, high in pairwise(SIZES):
        ious = [iou for share, iou in found if low < share <= high]
        if ious:
            name = f"{100 * low:g}-{100 * high:g} % ({len(ious)})"
            bars.append(page.Bar(name, 100 * float(np.mean(ious))))
    note = "Mean IoU of the parts in single images by their share of the image; how many there are is in brackets."
    return f'<p class="note">{note}</p><div class="panel">{page.bars(bars)}</div>'


def training(folder: Path) -> str:
    """Curves of the run that the evaluation lies in; nothing where there is no metrics.jsonl."""
    records = read_metrics(folder)
    loss = {"loss": [(r["iteration"], r["train/loss"]) for r in records if "train/loss" in r]}
    means = sorted({key for r in records for key in r if re.fullmatch(r"[^/]+/mIoU(_seen|_unseen)?", key)})
    scores = {key: [(r["iteration"], r[key]) for r in records if key in r] for key in means}
    charts = [page.curves(lines) for lines in (loss, scores) if any(len(points) > 1 for points in lines.values())]
    if not charts:
        return ""
    panels = "".join(f'<div class="panel">{chart}</div>' for chart in charts)
    return f'<h2>Training</h2><p class="note">Over the iterations.</p><div class="curves">{panels}</div>'


def command() -> int:
    """The command line."""
    return arguments.run(main, Options, __doc__)
