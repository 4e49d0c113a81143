"""`python datasets/draw_toy.py --root data/ToyPascalPart116`: draw the synthetic set, or keep the one that is there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from toy_world.writer import ToyOptions, is_complete, write_toy


def main() -> int:
    defaults = ToyOptions()
    parser = argparse.ArgumentParser(prog="python datasets/draw_toy.py", description=__doc__)
    parser.add_argument("--root", default="data/ToyPascalPart116", help="folder of the set (default: %(default)s)")
    parser.add_argument("--num-train", type=int, default=defaults.num_train, help="training images (%(default)s)")
    parser.add_argument("--num-val", type=int, default=defaults.num_val, help="validation images (%(default)s)")
    parser.add_argument("--size", type=int, default=defaults.size, help="side of an image in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="same seed, same bytes (%(default)s)")
    args = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    try:
        options = ToyOptions(num_train=args.num_train, num_val=args.num_val, size=args.size, seed=args.seed)
        drawn = _write(Path(args.root), options, console)
    except (ValueError, FileExistsError) as error:
        console.print(str(error), style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; nothing was left behind")
        return 130
    state = "written" if drawn else "complete already, kept"
    console.print(f"{args.root}: {options.num_train} training and {options.num_val} validation images, {state}")
    return 0


def _write(root: Path, options: ToyOptions, console: Console) -> bool:
    if is_complete(root, options):
        return False
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("drawing", total=options.num_train + options.num_val)
        return write_toy(root, options, progress=lambda done, _: bar.update(task, completed=done))


if __name__ == "__main__":
    sys.exit(main())
