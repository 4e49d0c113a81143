"""Experiments that are only a system and a data set: composed from their names, not written out.

`part_clipseg_pascal_part_116` is configs/experiment/part_clipseg.yaml on configs/dataset/pascal_part_116.yaml, and
`..._ade20k_part_234_to_pascal_part_116` is trained on the one and watched on the other. Files of configs/experiment/
that name a data set of their own are experiments as they stand. `folders` are everywhere those of the YAML files: the
package's and the user's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.config_store import ConfigStore

GROUP = "experiment"
TINY = "_tiny"
FEW_SHOTS = "shot"


class Experiment(NamedTuple):
    """The parts of a composed experiment's name; `evaluated` is the data set that is watched, if it is another."""

    system: str
    dataset: str
    evaluated: str | None = None

    @property
    def name(self) -> str:
        """As given on the command line."""
        return f"{self.system}_{self.dataset}" + (f"_to_{self.evaluated}" if self.evaluated else "")


def experiments(folders: Sequence[Path]) -> list[Experiment]:
    """Every system of configs/experiment/ with every data set, and with every pair of full benchmarks."""
    systems = sorted(stems(folders, GROUP) & stems(folders, "model"))
    files = [path for folder in folders for path in (folder / "dataset").glob("*.yaml")]
    datasets = sorted({path.stem for path in files if not _needs_root(path)})
    benchmarks = [name for name in datasets if FEW_SHOTS not in name and not name.startswith("toy_")]
    single = [Experiment(system, dataset) for system in systems for dataset in datasets]
    return single + [Experiment(system, *pair) for system in systems for pair in permutations(benchmarks, 2)]


def parse(name: str, folders: Sequence[Path]) -> Experiment | None:
    """The parts of a composed experiment's name; None for a file of configs/experiment/ and for other names."""
    return next((each for each in experiments(folders) if each.name == name), None)


def register(folders: Sequence[Path]) -> None:
    """Let Hydra know the composed experiments, so that they are choices like files: in sweeps, lists and errors.

    Once for the same files: hundreds of names take a quarter of a second, which every composition would wait for.
    """
    files = [path for folder in folders for path in (folder / "train.yaml", *folder.glob("*/*.yaml")) if path.is_file()]
    state = tuple((str(path), path.stat().st_mtime_ns) for path in files)
    if state not in _registered:
        _registered[:] = [state]
        _register(folders)


_registered: list[tuple[tuple[str, int], ...]] = []
"""The files that were registered last."""


def _register(folders: Sequence[Path]) -> None:
    store = ConfigStore.instance()
    composed = experiments(folders)
    best = {system: _best(folders, system) for system in {each.system for each in composed}}
    for each in composed:
        defaults: list[Any] = [each.system, {"override /dataset": each.dataset}]
        if each.evaluated is not None:
            defaults.append({"override /dataset@eval_dataset": each.evaluated})
        node: dict[str, Any] = {"defaults": defaults}
        if each.evaluated is not None or FEW_SHOTS in each.dataset:  # nothing is unseen, so no harmonic mean is defined
            node["best"] = {"metrics": [name.removesuffix("_harmonic") for name in best[each.system]]}
        store.store(group=GROUP, name=each.name, package="_global_", node=node, provider="partseg")
    store.repo[GROUP] = _Uncopied(store.repo.get(GROUP, {}))


class _Uncopied(dict[str, Any]):
    """A group of Hydra's store that is shared by its copies: Hydra copies the whole store for every composition.

    What it then loads it copies again. The hundreds of names took more than half of a composition (0.2 s).
    """

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Uncopied:
        return self


def _best(folders: Sequence[Path], system: str) -> list[str]:
    """The scores that keep a system's best checkpoints: its experiment's own, or those of train.yaml."""
    paths = [folder / place for folder in folders for place in (f"{GROUP}/{system}.yaml", "train.yaml")]
    for path in filter(Path.is_file, paths):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "best" in content:
            return content["best"]["metrics"]
    raise KeyError(f"no train.yaml with best.metrics in {list(map(str, folders))}")


def choices(folders: Sequence[Path]) -> list[str]:
    """All names of the group: files and composed ones."""
    return sorted(stems(folders, GROUP) | {each.name for each in experiments(folders)})


def official(recipe: str, model: str) -> str:
    """`recipe=official` spelled out for the model that is trained; the tiny models share their system's."""
    return f"official_{model.removesuffix(TINY)}" if recipe == "official" else recipe


def _needs_root(path: Path) -> bool:
    """Whether a data set is a format, whose folder or labels the user names, rather than a benchmark."""
    return re.search(r"\b(root|annotations|json): \?{3}", path.read_text(encoding="utf-8")) is not None


def stems(folders: Sequence[Path], group: str) -> set[str]:
    """Names of the YAML files of a group."""
    return {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
