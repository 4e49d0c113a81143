"""What the quickstart shows at its end: scores beside the baselines, and pictures of objects that were never seen.

    python tools/toy_report.py output/toy_part_clipseg --data data/ToyPascalPart116

Reads results.json and predictions/oracle_obj of the run and of its baselines; writes <run>/unseen_objects.png.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from partseg.data import catalog, io
from partseg.data.dataset import PartSegDataset
from partseg.evaluation import results
from partseg.evaluation.predictions import read_prediction
from partseg.utils import arguments
from partseg.utils.visualize import legend, overlay, save_png, tile

SPLITS = ("seen", "unseen", "harmonic")
PROTOCOLS = ("oracle_obj", "pred_all")
EXAMPLES = 3
"""Pictures of each unseen object."""


@dataclass(frozen=True)
class Options:
    run: Path
    data: Path = Path("data/ToyPascalPart116")


def main(options: Options) -> int:
    report(options.run, options.data, Console(soft_wrap=True, highlight=False))
    return 0


def report(run: Path, data: Path, console: Console) -> None:
    """Table, differences to the baselines, pictures."""
    systems = {
        "untrained": results.read(run / "baselines" / "untrained"),
        "most frequent part": results.read(run / "baselines" / "most_frequent_part"),
        run.name: results.read(run),
    }
    console.print(comparison(systems))
    untrained, frequent, trained = (content["protocols"] for content in systems.values())
    for split in ("seen", "unseen"):
        gain = score(trained, "oracle_obj", split) - score(frequent, "oracle_obj", split)
        console.print(f"oracle_obj {split}: {gain:+.1f} points over the most frequent part")
    gain = score(trained, "pred_all", "seen") - score(untrained, "pred_all", "seen")
    console.print(f"pred_all seen: {gain:+.1f} points over the untrained network")
    dataset = catalog.get("toy_pascal_part_116", split="val", root=str(data))
    path = save_png(pictures(dataset, run / "predictions" / "oracle_obj"), run / "unseen_objects.png")
    console.print(f"parts of objects that training never named: {path}")


def comparison(systems: Mapping[str, Mapping[str, Any]]) -> Table:
    """Rows are protocols and systems, columns splits."""
    grid = Table(title="SYNTHETIC DATA: mIoU in percent")
    for heading in ("protocol", "system", *SPLITS):
        grid.add_column(heading, justify="right" if heading in SPLITS else "left")
    for protocol in PROTOCOLS:
        for name, content in systems.items():
            if protocol in content["protocols"]:
                cells = [f"{score(content['protocols'], protocol, split):.1f}" for split in SPLITS]
                grid.add_row(protocol, name, *cells)
        grid.add_section()
    return grid


def score(protocols: Mapping[str, Any], protocol: str, split: str) -> float:
    """mIoU of a split, in percent."""
    return float(protocols[protocol]["metrics"][f"mIoU_{split}"])


def pictures(dataset: PartSegDataset, predictions: Path) -> np.ndarray:
    """Photo, truth and prediction of the images that show most of each unseen object; other objects are left blank."""
    vocabulary = dataset.vocabulary
    samples = [dataset[i] for i in range(len(dataset))]
    strips = []
    for name in vocabulary.unseen_objects:
        object_id = vocabulary.object_id(name)
        shown = sorted(samples, key=lambda s: -int((s.object == object_id).sum()))[:EXAMPLES]
        parts = [vocabulary.pairs[k][1] for k in vocabulary.parts_of_object(object_id)]
        first = int(vocabulary.parts_of_object(object_id)[0])
        rows = []
        for sample in shown:
            image = np.asarray(io.read_image(sample.file_name).convert("RGB"))
            here = sample.object == object_id
            predicted = read_prediction(predictions, sample, len(vocabulary))
            own = [torch.where(here, labels - first, -1).numpy() for labels in (sample.object_part, predicted)]
            rows += [image, *(overlay(image, labels, parts) for labels in own)]
        captions = [f"{name}: photo", "truth", "prediction"] * len(shown)
        strip = tile(rows, columns=3 * len(shown), captions=captions)
        names = legend(parts, columns=max(1, len(parts) // 2), font_size=12, width=strip.shape[1])
        strips.append(np.concatenate([strip, names[:, : strip.shape[1]]]))
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate([np.pad(s, ((0, 8), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips])


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
