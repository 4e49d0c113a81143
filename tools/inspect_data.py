"""Inspect a data set on disk and name everything that would change a score.

    python tools/inspect_data.py dataset=pascal_part_116 root=data/PascalPart116
    python tools/inspect_data.py dataset=ade20k_part_234 split=val json=report.json sheet=sheet.png

Arguments are key=value:
    dataset    name in configs/dataset (required)
    root       folder of the data set (default: the one in its config, under ./data)
    split      train or val (default: both)
    json       write the full report here
    sheet      write a contact sheet PNG with overlays and legend here
    images     images on the sheet (default 16)
    classes    false leaves the table per class out (default true)
    processes  worker processes (default: all cores)

Exit code 0: nothing found that would change a score. 1: something was found, or the data set cannot be read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console

from partseg.data.inspect import SPLITS, inspect
from partseg.data.inspect_sheet import contact_sheet, tables
from partseg.utils.files import json_bytes, write_atomic
from partseg.utils.parallel import default_processes
from partseg.utils.visualize import save_png

KEYS = ("dataset", "root", "split", "json", "sheet", "images", "classes", "processes")
PIPE_WIDTH = 120


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """key=value arguments; ValueError names unknown keys and malformed arguments."""
    values: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in KEYS:
            raise ValueError(f"argument {argument!r} is not key=value with a key of {', '.join(KEYS)}")
        values[key] = value
    if "dataset" not in values:
        raise ValueError("dataset=<name> is required, for example dataset=pascal_part_116")
    if values.get("split", SPLITS[0]) not in SPLITS:
        raise ValueError(f"split={values['split']} is not one of {', '.join(SPLITS)}")
    if not isinstance(yaml.safe_load(values.get("classes", "true")), bool):
        raise ValueError(f"classes={values['classes']} must be true or false")
    for key in ("images", "processes"):
        if key in values and not (values[key].isdigit() and int(values[key]) > 0):
            raise ValueError(f"{key}={values[key]} must be a whole number above 0")
    return values


def main(arguments: Sequence[str]) -> int:
    """Run the inspection; returns the exit code."""
    values = parse(arguments)
    report = inspect(
        values["dataset"],
        values.get("root"),
        splits=(values["split"],) if "split" in values else SPLITS,
        processes=int(values.get("processes", default_processes())),
    )
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(
        tables(report, classes=yaml.safe_load(values.get("classes", "true"))), highlight=False, soft_wrap=True
    )
    if "json" in values:
        write_atomic(Path(values["json"]), json_bytes(report.to_dict(), indent=2))
    if "sheet" in values:
        save_png(contact_sheet(report, num_images=int(values.get("images", 16))), values["sheet"])
    return 1 if report.changes_score else 0


if __name__ == "__main__":
    if set(sys.argv[1:]) & {"-h", "--help"}:
        print(__doc__)
        sys.exit(0)
    try:
        sys.exit(main(sys.argv[1:]))
    except (KeyError, ValueError, FileNotFoundError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
