"""Draw the synthetic set, or keep the one that is there.

    python datasets/draw_toy.py root=data/ToyPascalPart116

Arguments are key=value:
    root       folder of the set (default: data/ToyPascalPart116)
    num_train  training images
    num_val    validation images
    size       side of an image in pixels
    seed       same seed, same bytes
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from partseg.utils import arguments
from toy_world.writer import ToyOptions, is_complete, write_toy


@dataclass(frozen=True)
class Options(ToyOptions):
    root: Path = Path("data/ToyPascalPart116")


def main(options: Options) -> int:
    console = Console(soft_wrap=True, highlight=False)
    toy = ToyOptions(options.num_train, options.num_val, options.size, options.seed)
    drawn = _write(options.root, toy, console)
    state = "written" if drawn else "complete already, kept"
    console.print(f"{options.root}: {options.num_train} training and {options.num_val} validation images, {state}")
    return 0


def _write(root: Path, options: ToyOptions, console: Console) -> bool:
    if is_complete(root, options):
        return False
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("drawing", total=options.num_train + options.num_val)
        return write_toy(root, options, progress=lambda done, _: bar.update(task, completed=done))


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
