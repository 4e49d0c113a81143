"""The two command lines of the tables: reproduce (run what is missing, then collect) and collect (numbers only)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from partseg.engine.build import start_weights
from partseg.reproduce import render, stages
from partseg.reproduce.collect import collect
from partseg.reproduce.plan import Job, Options, jobs, stages_output, toy_root
from partseg.reproduce.stages import load_recipe
from partseg.reproduce.table import Table, load_table
from partseg.utils.config import compose
from partseg.utils.files import write_atomic
from partseg.utils.places import checkout_file

SMOKE_OUTPUT = Path("output/smoke_tables")
OUTPUT = Path("output/tables")
STAGES_FOLDER = Path("scripts/stages")
STAGES, SMOKE_STAGES = Path("output/stages"), Path("output/smoke_stages")
DRAW_TOY = ("num_train=6", "num_val=8", "size=96")


@dataclass(frozen=True)
class Collect:
    """Files to work on (scripts/tables/table1.yaml), and what tools/reproduce_table.py says of each argument."""

    tables: tuple[Path, ...]
    seeds: str | None = None
    output: Path | None = None
    smoke: bool = False


@dataclass(frozen=True)
class Reproduce(Collect):
    """What running adds to collecting."""

    dry_run: bool = False
    num_gpus: int | None = None
    override: tuple[str, ...] = ()


def options_from(given: Collect) -> Options:
    """Options of parsed arguments; ValueError for seeds that are no numbers."""
    text = given.seeds or ("1" if given.smoke else "1,2,3,4,5")
    try:
        seeds = tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise ValueError(f"seeds={text!r} must be whole numbers separated by commas, for example 1,2,3") from None
    output = given.output or (SMOKE_OUTPUT if given.smoke else OUTPUT)
    if not isinstance(given, Reproduce):
        return Options(output=output, seeds=seeds, smoke=given.smoke)
    return Options(output, seeds, num_gpus=given.num_gpus, smoke=given.smoke, overrides=given.override)


def plan(table: Table, options: Options) -> list[Job]:
    """All jobs of a table; composes each row's experiment, so a typo in a table stops before anything runs.

    Of a recipe all stages are run that a row needs, and with them the others of the same file.
    """
    rows = {row.experiment: row for row in table.rows if row.experiment is not None}
    iterations = {
        name: compose("train", [f"experiment={name}", *options.overrides]).train.iterations
        for name, row in rows.items()
    }
    recipes = dict.fromkeys(row.stage.partition("/")[0] for row in table.rows if row.stage is not None)
    staged = [
        job
        for name in recipes
        for seed in options.seeds
        for job in stages.jobs(
            load_recipe(STAGES_FOLDER / f"{name}.yaml"),
            replace(options, output=stages_output(options, seed), seeds=(seed,), toy=toy_root(options)),
        )
    ]
    return [*jobs(table, options, iterations_of=iterations), *staged]


def check_data(table: Table, options: Options) -> None:
    """FileNotFoundError before anything starts when a data set or a local weight file is not there."""
    for row in table.rows:
        if row.experiment is None:
            continue
        config = compose("train", [f"experiment={row.experiment}", *row.overrides, *options.overrides])
        root = Path(config.dataset.root)
        if not root.parent.is_dir() or not any(root.parent.iterdir()):
            raise FileNotFoundError(
                f"row {row.system!r} needs {row.dataset} under {root}, and {root.parent} is empty or absent: prepare "
                "it (datasets/README.md), give --override data_root=<folder>, or try the pipeline with --smoke"
            )
        for source in start_weights(config):
            if source.endswith((".pt", ".pth", ".bin", ".safetensors")) and not Path(source).is_file():
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
        program = checkout_file("datasets/draw_toy.py")
        subprocess.run([sys.executable, program, *DRAW_TOY, f"root={toy_root(options)}"], check=True)


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


def reproduce(given: Reproduce) -> int:
    """What tools/reproduce_table.py does."""
    console = Console()
    options = options_from(given)
    tables = [load_table(path) for path in given.tables]
    todo = {job.command: job for table in tables for job in plan(table, options) if not job.finished}
    if given.dry_run:
        print_commands(list(todo.values()), in_order=any(row.stage for table in tables for row in table.rows))
        return 0
    if todo and not options.smoke:
        for table in tables:
            check_data(table, options)
    make_toy_data(options)
    run_jobs(list(todo.values()), console)
    for table in tables:
        print(write_table(table, options))  # noqa: T201
    return 0


def collect_only(given: Collect) -> int:
    """What tools/collect_results.py does."""
    options = options_from(given)
    for path in given.tables:
        print(write_table(load_table(path), options))  # noqa: T201
    return 0


def run_stages(given: Reproduce) -> int:
    """What tools/run_stages.py does: every recipe's unfinished stages, in order, with the first of the seeds."""
    options = replace(options_from(given), output=given.output or (SMOKE_STAGES if given.smoke else STAGES))
    recipes = [load_recipe(path) for path in given.tables]
    todo = [job for recipe in recipes for job in stages.jobs(recipe, options) if not job.finished]
    if given.dry_run:
        print_commands(todo, in_order=True)
        return 0
    make_toy_data(options)
    run_jobs(todo, Console())
    return 0


def print_commands(todo: Sequence[Job], *, in_order: bool = False) -> None:
    """SLURM commands as a shell script: an evaluation waits for its training, `in_order` each job for the last."""
    for number, job in enumerate(todo, 1):
        after = todo.index(job.training) + 1 if job.training in todo else None
        print(job.slurm(number, after=number - 1 or None if in_order else after))  # noqa: T201 (the command's output)
