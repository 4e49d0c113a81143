"""Trainings in stages as one file: train a system, export its predictions as labels, train another from it, evaluate.

    title: a student on its teacher's parts
    stages:
      teacher: {kind: train, experiment: part_clipseg_pascal_part_116}
      labels:  {kind: export, of: teacher, overrides: [dataset=folder, dataset.root=photos, export.min_score=0.5]}
      student: {kind: train, experiment: clipseg_pascal_part_116, from: teacher,
                overrides: [dataset=coco_style, "dataset.root={labels}", "dataset.annotations=shard-*.json"]}
      score:   {kind: evaluate, of: student, checkpoint: best_pred_all}

Every stage is an ordinary job of the planner that runs the tables: it has a folder, is left alone once finished, goes
on where it stopped, and can be printed as a SLURM command. `{labels}` in an override is that stage's folder. `of` and
`from` name earlier stages; `checkpoint` is latest (default), best_<evaluator>, or a file. A stage of kind `tool` is any
other file of the checkout's tools/, or a program of yours (my_tool.py), that takes ckpt= and output=, key=value, and
leaves complete.json: {kind: tool, tool: parse_parts}.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from partseg.reproduce.plan import Job, Kind, Options, command, quote, shrunk, small_overrides
from partseg.utils.config import compose
from partseg.utils.places import checkout_file

KEYS = {
    "train": ({"experiment"}, {"from", "checkpoint", "overrides"}),
    "export": ({"of"}, {"checkpoint", "overrides"}),
    "evaluate": ({"of"}, {"checkpoint", "overrides"}),
    "tool": ({"of", "tool"}, {"checkpoint", "overrides"}),
}
"""Keys that a stage of each kind must and may have, beside `kind`."""

COMMANDS: dict[str, str] = {"train": "train", "export": "export", "evaluate": "eval"}
"""Kind of stage -> command of partseg."""


@dataclass(frozen=True)
class Stage:
    """One entry of `stages`. `source` is the earlier stage whose checkpoint it uses, if any."""

    name: str
    kind: Kind
    experiment: str
    source: str | None
    checkpoint: str
    overrides: tuple[str, ...]
    tool: str = ""


@dataclass(frozen=True)
class Recipe:
    """Stages in the order in which they run."""

    name: str
    title: str
    stages: tuple[Stage, ...]


def load_recipe(path: Path) -> Recipe:
    """A recipe file; ValueError names the file, the key and what is allowed."""
    if not path.is_file():
        raise FileNotFoundError(f"no recipe {path}")
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, Mapping) or not isinstance(data.get("stages"), Mapping) or not data["stages"]:
        raise ValueError(f"{path}: `stages` must map a name to each stage; see partseg/reproduce/stages.py")
    unknown = sorted(set(data) - {"title", "stages"})
    if unknown:
        raise ValueError(f"{path} has unknown keys {unknown}; a recipe has title and stages")
    stages: dict[str, Stage] = {}
    for name, entry in data["stages"].items():
        stages[name] = _stage(str(name), entry, stages, path)
    return Recipe(path.stem, str(data.get("title", path.stem)), tuple(stages.values()))


def _stage(name: str, entry: Any, before: Mapping[str, Stage], path: Path) -> Stage:
    where = f"{path}: stages.{name}"
    if not isinstance(entry, Mapping) or entry.get("kind") not in KEYS:
        kind = entry.get("kind") if isinstance(entry, Mapping) else entry
        raise ValueError(f"{where}.kind is {kind!r}; it must be one of {', '.join(KEYS)}")
    kind = entry["kind"]
    needed, optional = KEYS[kind]
    missing, unknown = sorted(needed - set(entry)), sorted(set(entry) - needed - optional - {"kind"})
    if missing or unknown:
        known = ", ".join(sorted(needed | optional))
        raise ValueError(f"{where} of kind {kind} takes {known}; it lacks {missing} and has {unknown}")
    source = entry.get("of", entry.get("from"))
    overrides = tuple(map(str, entry.get("overrides", ())))
    for used in (*([] if source is None else [source]), *_mentioned(overrides)):
        _check_stage(used, before, where)
    if source is not None and before[source].kind != "train":
        raise ValueError(f"{where}: {source!r} is of kind {before[source].kind}, which has no checkpoint")
    experiment = entry.get("experiment") or before[source].experiment
    tool = str(entry.get("tool", ""))
    return Stage(name, kind, experiment, source, str(entry.get("checkpoint", "latest")), overrides, tool)


def _check_stage(used: str, before: Mapping[str, Stage], where: str) -> None:
    if used not in before:
        near = difflib.get_close_matches(str(used), before, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where} uses stage {used!r}, which no earlier stage is called{hint} ({', '.join(before)})")


def _mentioned(overrides: Sequence[str]) -> Iterator[str]:
    """Stage names in braces that stand at the beginning of an override's value."""
    for override in overrides:
        value = override.partition("=")[2].lstrip("'\"")
        if value.startswith("{") and "}" in value and ":" not in value[: value.index("}")]:
            yield value[1 : value.index("}")]


def jobs(recipe: Recipe, options: Options) -> list[Job]:
    """The stages as jobs; composes each training, so that a typo stops before anything runs."""
    folder = options.output / recipe.name
    made: dict[str, Job] = {}
    for stage in recipe.stages:
        made[stage.name] = _job(recipe, stage, folder, options, training=made.get(str(stage.source)))
    return list(made.values())


def _job(recipe: Recipe, stage: Stage, folder: Path, options: Options, *, training: Job | None) -> Job:
    directory = folder / stage.name
    overrides = [_filled(override, recipe, folder) for override in stage.overrides]
    if stage.kind == "tool":
        checkpoint = _checkpoint(stage, folder)
        words = (sys.executable, str(_program(stage)), f"ckpt={checkpoint}", f"output={directory}", *overrides)
        return Job(stage.kind, directory, words, training=training, checkpoint=checkpoint)
    small = shrunk(stage.experiment, options)
    data = [override for override in small if override.startswith("dataset=")]
    own = small_overrides(overrides) if options.smoke else overrides
    settings = [f"experiment={stage.experiment}", *data, *own]
    settings += [*(override for override in small if override not in data), *options.overrides]
    iterations = None
    if stage.kind == "train":
        place = [f"output_root={folder}", f"name={stage.name}", f"seed={options.seeds[0]}"]
        start = [] if stage.source is None else [f"init_from={_checkpoint(stage, folder)}"]
        settings += [*start, *place]
        iterations = int(compose("train", list(map(quote, settings))).train.iterations)
    else:
        settings += [f"ckpt={_checkpoint(stage, folder)}", f"output={directory}"]
    arguments = list(map(quote, settings))
    words = command(COMMANDS[stage.kind], options, arguments)
    if stage.kind == "train":
        return Job(stage.kind, directory, words, iterations)
    return Job(stage.kind, directory, words, training=training, checkpoint=_checkpoint(stage, folder))


def _program(stage: Stage) -> Path:
    """The file of a stage of kind `tool`."""
    if not stage.tool.endswith(".py"):
        return checkout_file(f"tools/{stage.tool}.py")
    if not Path(stage.tool).is_file():
        raise FileNotFoundError(f"stages.{stage.name}.tool: there is no {stage.tool} in {Path.cwd()}")
    return Path(stage.tool)


def _checkpoint(stage: Stage, folder: Path) -> Path:
    if stage.checkpoint.endswith(".pt"):
        return Path(stage.checkpoint)
    return folder / str(stage.source) / "checkpoints" / f"{stage.checkpoint}.pt"


def _filled(override: str, recipe: Recipe, folder: Path) -> str:
    """An override in which `{stage}` is that stage's folder."""
    for stage in recipe.stages:
        override = override.replace("{" + stage.name + "}", str((folder / stage.name).absolute()))
    return override
