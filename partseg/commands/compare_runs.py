"""The same images under several systems, side by side, those first on which they differ most.

    partseg eval ckpt=output/a save_predictions=true         (and b, on the same data set)
    partseg compare runs=output/a,output/b

One HTML file that opens without a server. Arguments are key=value:
    runs        folders with results.json and predictions/, separated by commas (required)
    evaluator   the protocol whose predictions are shown (default: the first that all runs have)
    images      images shown (default 12)
    output      the page (default: compare.html)
    root        folder of the data set (default: where it was when it was evaluated)
    plugins     module of yours that the runs' classes are from; may be given several times
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from partseg.commands.visualize_results import (
    GIVEN,
    MEANS,
    SIDE,
    Scored,
    evaluators_with_predictions,
    open_dataset,
    read_one,
    score_images,
)
from partseg.data import io
from partseg.data.dataset import PartSegDataset
from partseg.evaluation import results
from partseg.evaluation.pixels import PixelEvaluator
from partseg.photo_prediction import shrunk
from partseg.utils import arguments, page
from partseg.utils.config import instantiate, stored
from partseg.utils.files import write_atomic


@dataclass(frozen=True)
class Options:
    runs: str
    evaluator: str | None = None
    images: int = 12
    output: Path = Path("compare.html")
    root: Path | None = None
    plugins: tuple[str, ...] = ()


def main(options: Options) -> int:
    """Score every run's predictions, choose the images, write the page."""
    folders = list(dict.fromkeys(Path(name.strip()) for name in options.runs.split(",") if name.strip()))
    if len(folders) < 2:
        raise ValueError(f"runs={options.runs} names {len(folders)} run; give two or more, separated by commas")
    contents = {folder: results.read(folder) for folder in folders}
    first = contents[folders[0]]
    other = [str(f) for f, c in contents.items() if c["dataset"] != first["dataset"]]
    if other:
        raise ValueError(f"{', '.join(other)} was evaluated on other images than {folders[0]}; compare like with like")
    shared = [evaluators_with_predictions(content, folder, options.evaluator) for folder, content in contents.items()]
    name = next((each for each in shared[0] if all(each in names for names in shared)), None)
    if name is None:
        raise ValueError(f"no protocol has predictions of all runs: {dict(zip(map(str, folders), shared))}")
    dataset = open_dataset(first, options.root, options.plugins)
    evaluator = instantiate(stored(first["config"]["evaluator"][name], group="evaluator", plugins=options.plugins))
    console = Console(soft_wrap=True)
    scored = {
        folder: {
            one.index: one
            for one in score_images(dataset, evaluator, predictions(folder, name), title=f"{folder}", console=console)
        }
        for folder in folders
    }
    spread = {i: np.ptp([each[i].iou for each in scored.values()]) for i in scored[folders[0]]}
    chosen = sorted(spread, key=lambda i: (-spread[i], i))[: options.images]
    body = [summary(contents, name, GIVEN[evaluator.protocol.objects]), '<div class="cards">']
    body += [card(dataset, evaluator, name, {f: each[i] for f, each in scored.items()}) for i in chosen]
    write_atomic(options.output, page.document("partseg: runs compared", "".join([*body, "</div>"])).encode())
    console.print(f"{options.output}: {len(chosen)} images of {len(folders)} runs under {name}")
    return 0


def predictions(folder: Path, name: str) -> Path:
    """Where a run's predictions under a protocol lie."""
    return (folder if folder.is_dir() else folder.parent) / "predictions" / name


def called(folders: Collection[Path]) -> dict[Path, str]:
    """Each run's path from where the paths part: folders of two systems may both end in `seed1`."""
    whole = {folder: folder.resolve() for folder in folders}
    shared = Path(os.path.commonpath([path.parent for path in whole.values()]))
    return {folder: str(path.relative_to(shared)) for folder, path in whole.items()}


def summary(contents: Mapping[Path, Mapping[str, Any]], name: str, given: str) -> str:
    """A table of the runs' means."""
    keys = list(MEANS)[:4]
    rows, names = [], called(contents)
    for folder, content in contents.items():
        values = [content["protocols"][name]["metrics"].get(key) for key in keys]
        rows.append([names[folder], *("none" if value is None else f"{value:.2f}" for value in values)])
    data = next(iter(contents.values()))
    drawn = "<p class='warning'>Drawn pictures, not photographs.</p>" if data["synthetic"] else ""
    return (
        f"<h1>{escape(data['dataset']['name'])}, {escape(name)}</h1>{drawn}"
        f'<p class="note">{given} Scores in percent; seen, unseen and harmonic are means of mIoU.</p>'
        f'<div class="panel">{page.table(("run", *(MEANS[key] for key in keys)), rows)}</div>'
        f'<p class="note">Images on which the runs differ most come first.</p>'
    )


def card(dataset: PartSegDataset, evaluator: PixelEvaluator, name: str, scored: Mapping[Path, Scored]) -> str:
    """Ground truth and what each run predicted of one image."""
    one = next(iter(scored.values()))
    names: Sequence[str] = dataset.vocabulary.object_parts
    cells: list[str] = []
    runs = called(scored)
    for folder, each in scored.items():
        sample, truth, predicted = read_one(dataset, evaluator, predictions(folder, name), each.index)
        image = np.asarray(io.read_image(sample.file_name))
        if not cells:
            cells.append(page.viewer(*shrunk(image, truth, SIDE), names, caption="ground truth"))
        caption = f"{runs[folder]}: mean IoU {each.iou:.1f}"
        cells.append(page.viewer(*shrunk(image, predicted, SIDE), names, caption=caption))
    return f'<div class="panel card"><h3>{escape(one.name)}</h3><div class="row even">{"".join(cells)}</div></div>'


def command() -> int:
    """The command line."""
    return arguments.run(main, Options, __doc__)
