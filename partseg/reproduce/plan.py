"""From the rows of a table to commands: what to train, evaluate and measure, and what is finished already.

A run lives in `<output>/<row name>/seed<k>`; runs that several tables share are made once. Each finished training is
evaluated once per protocol, on the checkpoint that was best under that protocol (the paper's rule), and every
evaluation scores all protocols, so one folder of results serves all tables.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from partseg.engine.checkpoint import last_iteration
from partseg.engine.writers import evaluated
from partseg.evaluation import export, results
from partseg.reproduce.table import Row, Table
from partseg.utils.config import config_dir, config_dirs
from partseg.utils.experiments import TINY, parse, stems
from partseg.utils.files import sha256_of
from partseg.utils.places import checkout_file, slurm_script

PROTOCOLS = ("pred_all", "oracle_obj")
TOY = "toy_"
SMOKE_DATASET = f"{TOY}pascal_part_116"
SMOKE_CLASSES = 116
SMOKE_OVERRIDES = (
    f"dataset={SMOKE_DATASET}",
    "init_from=null",
    "allow_random=true",
    "train.iterations=2",
    "train.batch_size=4",
    "train.num_workers=0",
    "train.limit_images=4",
    "eval.limit_images=4",
    "eval.num_workers=0",
    "hooks.visualize.every=1000",
)


Kind = Literal["train", "export", "evaluate", "measure", "tool"]
RESULTS = {"export": "complete.json", "tool": "complete.json", "evaluate": "results.json", "measure": "measure.json"}
"""What a finished job leaves in its folder; a training has a checkpoint of its last iteration."""


@dataclass(frozen=True)
class Options:
    """How a table is made. `smoke` shrinks every run to seconds on synthetic data, in a folder of its own."""

    output: Path
    seeds: tuple[int, ...]
    num_gpus: int | None = None
    smoke: bool = False
    overrides: tuple[str, ...] = ()
    toy: Path | None = None
    """Where the synthetic data of smoke runs are; below `output` unless given."""


@dataclass(frozen=True)
class Job:
    """One command and what it leaves behind; an evaluation knows its training and the checkpoint it reads."""

    kind: Kind
    directory: Path
    command: tuple[str, ...]
    iterations: int | None = None
    training: Job | None = None
    checkpoint: Path | None = None

    @property
    def finished(self) -> bool:
        """True for a training with its last evaluation, and for a result of the checkpoint that is the best now."""
        if self.kind == "train":
            last = last_iteration(self.directory)
            return last >= (self.iterations or 0) and last in evaluated(self.directory)
        if self.training is not None and not self.training.finished:
            return False
        if self.kind == "evaluate" and self.checkpoint is not None:
            return results.is_of(self.directory, self.checkpoint)
        if self.kind == "export" and self.checkpoint is not None:
            return self.checkpoint.is_file() and export.made_by(self.directory) == sha256_of(self.checkpoint)
        return (self.directory / RESULTS[self.kind]).is_file()

    def slurm(self, number: int, *, after: int | None = None) -> str:
        """A line that submits the command as job `number`, to start once job `after` has succeeded."""
        wait = "" if after is None else f" --dependency=afterok:$job_{after}"
        words = shlex.join([str(slurm_script()), *self.command[1:]])
        return f"job_{number}=$(sbatch --parsable{wait} {words})"


def jobs(table: Table, options: Options, *, iterations_of: dict[str, int]) -> Iterator[Job]:
    """All jobs of a table, trainings before their evaluations; `iterations_of` maps an experiment to its length."""
    trained: set[str] = set()
    done: set[tuple[str, str]] = set()
    for row in table.rows:
        if row.tool is not None:
            yield _tool(table, row, options)
        if row.experiment is None or (row.run_name, row.evaluation_name) in done:
            continue
        done.add((row.run_name, row.evaluation_name))
        if table.measure:
            yield _measure(row, options)
            continue
        for seed in options.seeds:
            training = _train(row, seed, options, iterations=iterations_of[row.experiment])
            if row.run_name not in trained:
                yield training
            for protocol in PROTOCOLS if table.evaluator is None else table.protocols:
                yield _evaluate(table, row, seed=seed, protocol=protocol, options=options, training=training)
        trained.add(row.run_name)


def run_directory(row: Row, seed: int, options: Options) -> Path:
    """Where the training of a row with one seed lives."""
    return options.output / row.run_name / f"seed{seed}"


def result_directory(table: Table, row: Row, *, seed: int, protocol: str, options: Options) -> Path:
    """Where the result of a row's best checkpoint under `protocol` lives, or of its stage or tool."""
    dataset = SMOKE_DATASET if options.smoke else table_dataset(table, row)
    if row.stage is not None:
        return stages_output(options, seed) / row.stage
    if row.tool is not None:
        return options.output / dataset / row.tool
    folder = f"cross_{dataset}" if table.cross_dataset else dataset
    folder += row.evaluation_name + (f"__{table.evaluator}" if table.evaluator else "")  # tables may score a run twice
    return run_directory(row, seed, options) / "results" / folder / f"best_{protocol}"


def stages_output(options: Options, seed: int) -> Path:
    """Folder of the recipes that tables read, for one seed."""
    return options.output / "stages" / f"seed{seed}"


def measure_directory(row: Row, options: Options) -> Path:
    """Where the measured cost of a row lives; it does not depend on a seed."""
    return options.output / row.run_name / "cost"


def toy_root(options: Options) -> Path:
    """Synthetic data of the smoke runs."""
    return options.toy or options.output / "data" / "ToyPascalPart116"


def table_dataset(table: Table, row: Row) -> str:
    """Data set that a row is scored on."""
    return row.dataset


def settings(row: Row, options: Options) -> list[str]:
    """Overrides that make the row's model and data, also for its evaluation."""
    experiment = str(row.experiment)
    own = list(row.overrides)
    if options.smoke:  # whose data set is given below
        own = [each for each in small_overrides(own) if not each.startswith("dataset=")]
    return [*map(quote, [f"experiment={experiment}", *own, *shrunk(experiment, options)]), *options.overrides]


def shrunk(experiment: str, options: Options) -> list[str]:
    """Overrides of a smoke run: criterion and ablations stay as they are, model and data shrink; none otherwise."""
    if not options.smoke:
        return []
    found = parse(experiment, config_dirs())
    if found is None and not experiment.startswith(TOY):
        raise ValueError(f"experiment {experiment!r} must be a system and a data set, to be run with --smoke")
    model = [] if found is None else [f"model={found.system}{TINY}"]  # a toy experiment is small already
    return [*model, *SMOKE_OVERRIDES, f"data_root={toy_root(options).parent}"]


def small_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides as a smoke run takes them: the drawn data set has one split, folder, vocabulary, kind of instances."""
    toys = stems([config_dir()], "dataset")
    found = []
    for override in overrides:
        key, _, value = override.partition("=")
        words = value.split("_")
        names = [TOY + "_".join(words[:end]) for end in range(len(words), 0, -1)]
        toy = next((name for name in names if name in toys), None)
        if key in ("eval.split", "cross_dataset") or (key.endswith(".root") and value.startswith("${data_root}")):
            continue
        if key == "eval_dataset" or (key == "dataset" and toy is not None):
            found.append(f"{key}={toy or SMOKE_DATASET}")
        elif key in ("eval.instances", "augmentation.instances"):
            found.append(f"{key}=classes")
        elif key == "model.shape.classes":
            found.append(f"{key}={SMOKE_CLASSES}")
        else:
            found.append(override)
    return found


def command(name: str, options: Options, arguments: Sequence[str]) -> tuple[str, ...]:
    """`partseg <name>` with these arguments, from any folder."""
    return (sys.executable, "-m", "partseg", name, *arguments, *_gpus(options))


def _gpus(options: Options) -> list[str]:
    return [] if options.num_gpus is None else [f"launch.num_gpus={options.num_gpus}"]


def _train(row: Row, seed: int, options: Options, *, iterations: int) -> Job:
    directory = run_directory(row, seed, options)
    place = [f"output_root={options.output}", f"name={row.run_name}/seed{seed}", f"seed={seed}"]
    length = 2 if options.smoke else iterations
    return Job("train", directory, command("train", options, [*settings(row, options), *map(quote, place)]), length)


def _evaluate(table: Table, row: Row, *, seed: int, protocol: str, options: Options, training: Job) -> Job:
    directory = result_directory(table, row, seed=seed, protocol=protocol, options=options)
    checkpoint = training.directory / "checkpoints" / f"best_{protocol}.pt"
    arguments = [
        *settings(row, options),
        *(small_overrides(row.evaluation) if options.smoke else row.evaluation),
        f"evaluator={table.evaluator or 'tables'}",
        f"ckpt={checkpoint}",
        f"output={directory}",
    ]
    if table.cross_dataset and not options.smoke:
        arguments += [f"dataset={table_dataset(table, row)}", "cross_dataset=true"]
    words = command("eval", options, [quote(a) for a in arguments])
    return Job("evaluate", directory, words, training=training, checkpoint=checkpoint)


def _tool(table: Table, row: Row, options: Options) -> Job:
    """One start measures every row of the tool: equal commands are run once."""
    tool = str(row.tool).partition("/")[0]
    dataset = SMOKE_DATASET if options.smoke else table_dataset(table, row)
    own = list(row.overrides)
    if options.smoke:
        own = [*small_overrides(own), "eval.limit_images=4", f"data_root={toy_root(options).parent}"]
    words = [*own, f"output_root={options.output}", f"name={dataset}", *options.overrides]
    command = (sys.executable, f"tools/{tool}.py", *map(quote, words))
    return Job("evaluate", result_directory(table, row, seed=0, protocol="", options=options), command)


def _measure(row: Row, options: Options) -> Job:
    directory = measure_directory(row, options)
    arguments = [*settings(row, options), f"json={directory / 'measure.json'}"]
    words = (sys.executable, str(checkout_file("tools/benchmark.py")), *map(quote, arguments), *_gpus(options))
    return Job("measure", directory, words)


def quote(override: str) -> str:
    """Hydra reads `=`, commas and blanks inside a value as syntax: quote values that hold them."""
    key, _, value = override.partition("=")
    if any(character in value for character in "=, ()") and not value.startswith(("[", "{", "'", '"')):
        return f"{key}='{value}'"
    return override
