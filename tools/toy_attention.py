"""What the attention terms did in the runs of scripts/toy_table.sh: their values beside the scores.

    python tools/toy_attention.py output/toy_table --data data/ToyPascalPart116

Separation is the share of attended cells that two or more parts of an object attend to; enhancement is one minus the
least attention that any part of an object gets inside itself (docs/losses.md). Lower is what each term asks for.
Reads <folder>/<system>/seed<k> of PartCLIPSeg and its ablations; writes <folder>/attention.md.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from toy_table import ABLATION, standard_error  # the tool beside this one

from partseg.data import catalog
from partseg.data.dataset import PartSegDataset
from partseg.data.mapper import TrainMapper
from partseg.engine.checkpoint import load_model
from partseg.evaluation import results
from partseg.labels import IGNORE_LABEL
from partseg.losses.criterion import Criterion
from partseg.structures import Batch, collate
from partseg.utils import arguments
from partseg.utils.config import compose, instantiate
from partseg.utils.files import write_atomic

BATCH = 10
TERMS = ("separation", "enhancement")
SPLITS = ("seen", "unseen")

Values = dict[str, np.ndarray]
"""system -> [seeds, (separation, enhancement) x (seen, unseen), then oracle_obj mIoU of both]"""


@dataclass(frozen=True)
class Options:
    folder: Path
    data: Path = Path("data/ToyPascalPart116")


def main(options: Options) -> int:
    console = Console(soft_wrap=True, highlight=False)
    values = measure(options.folder, options.data, console)
    text = markdown(values)
    write_atomic(options.folder / "attention.md", text.encode())
    console.print(text, markup=False)
    return 0


def measure(folder: Path, data: Path, console: Console) -> Values:
    """Term values and scores of every run; FileNotFoundError where there is none."""
    runs = [
        (system.name, path.parent)
        for system in sorted(folder.iterdir())
        if system.name in ABLATION
        for path in sorted(system.glob("seed*/results.json"))
    ]
    if not runs:
        raise FileNotFoundError(f"no <system>/seed<k>/results.json under {folder}: run scripts/toy_table.sh")
    rows: dict[str, list[list[float]]] = {}
    for system, run in track(runs, "attention terms", console=console):
        scores = results.read(run)["protocols"]["oracle_obj"]["metrics"]
        terms = attention_terms(run, data)
        rows.setdefault(system, []).append([*terms, *(scores[f"mIoU_{split}"] for split in SPLITS)])
    order = {name: place for place, name in enumerate(ABLATION)}
    return {name: np.array(rows[name]) for name in sorted(rows, key=lambda name: (order.get(name, 99), name))}


def attention_terms(run: Path, data: Path) -> list[float]:
    """Separation on seen and unseen objects, then enhancement."""
    model, _, config = load_model(run)
    off = [f"criterion.terms.{name}.weight=0" for name in ("object_part", "object", "part")]
    on = [f"criterion.terms.{name}.weight=1" for name in TERMS]
    criterion = instantiate(compose("train", ["criterion=partclipseg", *off, *on]).criterion)
    mapper = TrainMapper(size=config["model"]["image_size"], flip_probability=0)
    dataset = catalog.get("toy_pascal_part_116", split="val", root=data, mapper=mapper)
    by_split = mean_terms(model, criterion, dataset)
    return [by_split[split][name] for name in TERMS for split in SPLITS]


@torch.inference_mode()
def mean_terms(model: nn.Module, criterion: Criterion, dataset: PartSegDataset) -> dict[str, dict[str, float]]:
    """{seen, unseen} -> {term: mean over all (picture, object) pairs}; part labels of the other split are hidden."""
    vocabulary = dataset.vocabulary
    whole = [
        collate([dataset[i] for i in range(start, min(start + BATCH, len(dataset)))], vocabulary=vocabulary)
        for start in range(0, len(dataset), BATCH)
    ]
    batches = {split: [_only(batch, vocabulary.seen == (split == "seen")) for batch in whole] for split in SPLITS}
    totals = {split: _sum([criterion.counts(batch) for batch in batches[split]]) for split in SPLITS}
    sums = {split: dict.fromkeys(TERMS, 0.0) for split in SPLITS}
    for index, batch in enumerate(whole):
        outputs = model(batch, reads=criterion.reads)
        for split in SPLITS:
            terms = criterion(outputs, batches[split][index], totals[split])[1]
            for name, value in terms.items():
                sums[split][name] += float(value)
    return sums


def _only(batch: Batch, classes: np.ndarray) -> Batch:
    """The batch without the part labels of other classes; `classes` is a mask over object-parts."""
    labels = batch.object_part
    keep = (labels != IGNORE_LABEL) & torch.from_numpy(classes)[labels.where(labels != IGNORE_LABEL, 0).long()]
    return replace(batch, object_part=labels.where(keep, IGNORE_LABEL))


def _sum(counts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([count[key] for count in counts]).sum() for key in counts[0]}


def markdown(values: Values) -> str:
    """One row per system."""
    heads = [f"{term}, {split}" for term in TERMS for split in SPLITS] + [f"oracle_obj {split}" for split in SPLITS]
    lines = [
        "SYNTHETIC DATA. Values of the attention terms on validation pictures (0..1, lower is what they ask for)",
        "and mIoU in percent, mean ± standard error over seeds.",
        "",
        f"| system | seeds | {' | '.join(heads)} |",
        "|---|---|" + "---|" * len(heads),
    ]
    for system, rows in values.items():
        digits = [3] * 4 + [1] * 2
        cells = [f"{m:.{d}f} ± {e:.{d}f}" for m, e, d in zip(rows.mean(0), standard_error(rows), digits)]
        lines.append(f"| {ABLATION[system]} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
