"""Data sets by name: every YAML file in configs/dataset/ is one; notebooks and tests build them here."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from partseg.data.dataset import PartSegDataset
from partseg.utils.config import config_dir, instantiate
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped


def names() -> tuple[str, ...]:
    """Names that `get` accepts, sorted."""
    return tuple(sorted(path.stem for path in (config_dir() / "dataset").glob("*.yaml")))


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
    node = _node(name)
    if root is not None:
        overrides["root"] = str(root)
    config = OmegaConf.create({"data_root": str(data_root), "dataset": node})
    return instantiate(config.dataset, split=split, **overrides)


def describe(name: str) -> tuple[Vocabulary, int | None]:
    """Vocabulary that numbers the label files of data set `name`, and the bits of these files, without reading any."""
    node = _node(name)
    module = importlib.import_module(str(node["_target_"]).rpartition(".")[0])
    return shipped(node["vocabulary"]), module.LABEL_BITS


def _node(name: str) -> DictConfig:
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"no data set {name!r} in {config_dir() / 'dataset'}.{hint} It has: {', '.join(names())}")
    node = OmegaConf.load(config_dir() / "dataset" / f"{name}.yaml")
    assert isinstance(node, DictConfig)
    return node
