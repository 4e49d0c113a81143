"""Data sets by name: every YAML file in configs/dataset/ is one; notebooks and tests build them here."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from partseg.data.dataset import PartSegDataset
from partseg.utils.config import config_dirs, instantiate
from partseg.utils.experiments import stems
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped


def names() -> tuple[str, ...]:
    """Names that `get` accepts, sorted."""
    return tuple(sorted(stems(config_dirs(), "dataset")))


def get(
    name: str,
    *,
    split: str = "val",
    root: str | Path | None = None,
    data_root: str | Path = "data",
    **overrides: Any,
) -> PartSegDataset:
    """Build data set `name`, or raise KeyError with the names there are.

    Without `root` the data set's own folder under `data_root` is used. `overrides` are arguments of the builder that
    the YAML file names: `get("pascal_part_116", split="train", shots=16)`.
    """
    return instantiate(node(name, root=root, data_root=data_root), split=split, **overrides)


def single_names() -> tuple[str, ...]:
    """Names of the data sets with one known vocabulary: without mixtures, and files that bring their own words."""
    return tuple(name for name in names() if node(name).get("vocabulary") not in (None, "categories"))


def vocabulary(name: str) -> Vocabulary:
    """The vocabulary that numbers the labels of data set `name`; nothing of the data set is read.

    ValueError for a mixture, whose sources have their own.
    """
    found = node(name)
    if "vocabulary" not in found:
        raise ValueError(f"data set {name!r} is a mixture, whose sources have their own vocabularies")
    return shipped(found["vocabulary"])


def node(name: str, *, root: str | Path | None = None, data_root: str | Path = "data") -> DictConfig:
    """The config of data set `name`, its root resolved; KeyError lists the names there are."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"no data set {name!r} in {config_dirs()[-1] / 'dataset'}.{hint} It has: {', '.join(names())}")
    files = [folder / "dataset" / f"{name}.yaml" for folder in config_dirs()]
    loaded = OmegaConf.load(next(path for path in files if path.is_file()))
    config = OmegaConf.create({"data_root": str(data_root), "dataset": loaded}).dataset
    assert isinstance(config, DictConfig)
    if root is not None:
        config.root = str(root)
    return config
