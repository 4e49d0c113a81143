"""Inspect a data set on disk and name everything that would change a score.

    partseg inspect dataset=pascal_part_116 root=data/PascalPart116
    partseg inspect dataset=ade20k_part_234 split=val report=report.json sheet=sheet.png
    partseg inspect dataset=coco json=parts.json

Arguments are key=value:
    dataset    name in configs/dataset (required)
    root       folder of the data set (default: the one in its config, under ./data)
    json       labels of dataset=coco; of every other data set the same as report
    vocabulary, annotations, names, val_share   of your own data (dataset=folder, coco, coco_style): as in its config
    split      train or val (default: both)
    report     write the full report here, as JSON
    sheet      write a contact sheet PNG with overlays and legend here
    images     images on the sheet (default 16)
    classes    false leaves the table per class out (default true)
    processes  worker processes (default: all cores)

Exit code 0: nothing found that would change a score. 1: something was found. 2: the data set cannot be read.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from partseg.data import catalog
from partseg.data.inspect import SPLITS, inspect
from partseg.data.inspect_sheet import contact_sheet, tables
from partseg.utils import arguments
from partseg.utils.files import json_bytes, write_atomic
from partseg.utils.parallel import default_processes
from partseg.utils.visualize import save_png

PIPE_WIDTH = 120


@dataclass(frozen=True)
class Options:
    dataset: str
    root: Path | None = None
    vocabulary: str | None = None
    annotations: str | None = None
    names: str | None = None
    val_share: float | None = None
    split: str | None = None
    json: Path | None = None
    report: Path | None = None
    sheet: Path | None = None
    images: int = 16
    classes: bool = True
    processes: int = field(default_factory=default_processes)


def main(options: Options) -> int:
    if options.split not in (None, *SPLITS):
        raise ValueError(f"split={options.split} is not one of {', '.join(SPLITS)}")
    if min(options.images, options.processes) < 1:
        raise ValueError(f"images={options.images} and processes={options.processes} must be 1 or more")
    splits = SPLITS if options.split is None else (options.split,)
    labelled = OmegaConf.is_missing(catalog.node(options.dataset), "json")
    own = {key: getattr(options, key) for key in ("vocabulary", "annotations", "names", "val_share")}
    own["json"] = str(options.json) if labelled and options.json is not None else None
    settings = {key: value for key, value in own.items() if value is not None}
    report = inspect(options.dataset, options.root, splits=splits, processes=options.processes, settings=settings)
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(tables(report, classes=options.classes), highlight=False, soft_wrap=True)
    written = options.report or (None if labelled else options.json)
    if written is not None:
        write_atomic(written, json_bytes(report.to_dict(), indent=2))
    if options.sheet is not None:
        save_png(contact_sheet(report, num_images=options.images), options.sheet)
    return 1 if report.changes_score else 0


def command() -> int:
    """The command line."""
    return arguments.run(main, Options, __doc__)
