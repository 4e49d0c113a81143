"""The two command lines of the tables: reproduce (run what is missing, then collect) and collect (numbers only)."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from partseg.reproduce import render
from partseg.reproduce.collect import collect
from partseg.reproduce.plan import Job, Options, jobs, overrides_for, toy_root
from partseg.reproduce.table import Table, load_table
from partseg.utils.config import compose
from partseg.utils.files import write_atomic

SMOKE_OUTPUT = Path("output/smoke_tables")
OUTPUT = Path("output/tables")
DRAW_TOY = ("datasets/draw_toy.py", "--num-train=6", "--num-val=8", "--size=96")


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that both commands share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path, help="table files, scripts/tables/table1.yaml")
    parser.add_argument("--seeds", default=None, help="seeds, separated by commas (paper: 1,2,3,4,5; --smoke: 1)")
    parser.add_argument(
        "--output", type=Path, default=None, help=f"folder of all runs ({OUTPUT}; smoke {SMOKE_OUTPUT})"
    )
    parser.add_argument("--smoke", action="store_true", help="two steps per run on synthetic data: tests the pipeline")
    return parser


def options_from(args: argparse.Namespace, *, num_gpus: int | None = None, overrides: Sequence[str] = ()) -> Options:
    """Options of parsed arguments; ValueError for seeds that are no numbers."""
    text = args.seeds or ("1" if args.smoke else "1,2,3,4,5")
    try:
        seeds = tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise ValueError(f"--seeds {text!r} must be whole numbers separated by commas, for example 1,2,3") from None
    output = args.output or (SMOKE_OUTPUT if args.smoke else OUTPUT)
    return Options(output=output, seeds=seeds, num_gpus=num_gpus, smoke=args.smoke, overrides=tuple(overrides))


def plan(table: Table, options: Options) -> list[Job]:
    """All jobs of a table; composes each row's experiment, so a typo in a table stops before anything runs."""
    rows = {row.experiment: row for row in table.rows if row.experiment is not None}
    iterations = {
        name: compose("train", [f"experiment={name}", *overrides_for(row, options)]).train.iterations
        for name, row in rows.items()
    }
    return list(jobs(table, options, iterations_of=iterations))


def check_data(table: Table, options: Options) -> None:
    """FileNotFoundError before anything starts when a data set or a local weight file is not there."""
    for row in table.rows:
        if row.experiment is None:
            continue
        config = compose("train", [f"experiment={row.experiment}", *row.overrides, *overrides_for(row, options)])
        root = Path(config.dataset.root)
        if not root.parent.is_dir() or not any(root.parent.iterdir()):
            raise FileNotFoundError(
                f"row {row.system!r} needs {row.dataset} under {root}, and {root.parent} is empty or absent: prepare "
                "it (datasets/README.md), give --override data_root=<folder>, or try the pipeline with --smoke"
            )
        source = config.init_from
        if source and str(source).endswith((".pt", ".pth", ".bin", ".safetensors")) and not Path(source).is_file():
            raise FileNotFoundError(f"row {row.system!r}: init_from={source} is not there")


def run_jobs(todo: Sequence[Job], console: Console) -> None:
    """Run the jobs in order; SystemExit with the failing command, what is finished stays finished."""
    for number, job in enumerate(todo, 1):
        console.print(f"[bold]{number}/{len(todo)}[/bold] {job.kind} {job.directory}", highlight=False)
        result = subprocess.run(job.command, check=False)
        if result.returncode:
            raise SystemExit(
                f"error: exit code {result.returncode} from {' '.join(job.command)}\n"
                "Finished runs are kept; start the same table again to go on from here."
            )
        if not job.finished:
            raise SystemExit(f"error: {' '.join(job.command)} ended without its result in {job.directory}")


def make_toy_data(options: Options) -> None:
    """Synthetic data of the smoke runs; nothing happens where it is complete."""
    if options.smoke:
        subprocess.run([sys.executable, *DRAW_TOY, f"--root={toy_root(options)}"], check=True)


def write_table(table: Table, options: Options) -> str:
    """Collect, write <output>/<table>.md, .tex and .csv, and return the Markdown."""
    collected = collect(table, options)
    options.output.mkdir(parents=True, exist_ok=True)
    text = render.markdown(collected)
    for suffix, content in (
        (".md", text),
        (".tex", render.latex(collected)),
        (".csv", render.comma_separated(collected)),
    ):
        write_atomic(options.output / f"{table.name}{suffix}", content.encode())
    return text


def reproduce(arguments: Sequence[str] | None = None) -> None:
    """Entry of tools/reproduce_table.py."""
    arguments_parser = parser("Run what a table lacks, then print it beside the published numbers.")
    arguments_parser.add_argument("--dry-run", action="store_true", help="print SLURM commands of what is missing")
    arguments_parser.add_argument("--num-gpus", type=int, default=None, help="GPUs per run on this machine")
    arguments_parser.add_argument("--override", action="append", default=[], help="config override for every run")
    args = arguments_parser.parse_args(arguments)
    console = Console()
    try:
        options = options_from(args, num_gpus=args.num_gpus, overrides=args.override)
        tables = [load_table(path) for path in args.tables]
        todo = {job.command: job for table in tables for job in plan(table, options) if not job.finished}
        if args.dry_run:
            for job in todo.values():
                print(job.slurm)  # noqa: T201 (the command's output)
            return
        if todo and not options.smoke:
            for table in tables:
                check_data(table, options)
        make_toy_data(options)
        run_jobs(list(todo.values()), console)
        for table in tables:
            print(write_table(table, options))  # noqa: T201
    except (ValueError, KeyError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def collect_only(arguments: Sequence[str] | None = None) -> None:
    """Entry of tools/collect_results.py."""
    args = parser("Print tables from the results that are there; start nothing.").parse_args(arguments)
    try:
        options = options_from(args)
        for path in args.tables:
            print(write_table(load_table(path), options))  # noqa: T201
    except (ValueError, KeyError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
