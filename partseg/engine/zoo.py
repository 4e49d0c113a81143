"""Public checkpoints by name: which system reads each, what it was trained on, under which terms.

Every system lists its own in `systems/<name>/zoo.yaml`. A file that is given by path is known by its tensors' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import nn

from partseg.engine.run import plain
from partseg.utils.config import compose, config_dirs, instantiate
from partseg.utils.experiments import stems
from partseg.weights.layouts import WeightLayout
from partseg.weights.load import LoadReport, layouts_of, load_weights
from partseg.weights.sources import read_weights

CONVERTED = "partseg-weights-1"
"""`format` in the metadata of what tools/convert_weights.py writes."""


@dataclass(frozen=True)
class Public:
    """One family of public files. `name` is a hub repository, None for files that come from elsewhere.

    `settings` are entries of the model's config that these weights need.
    """

    title: str
    model: str
    layout: str
    trained_on: str
    licence: str
    verified: str
    name: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A built network with its weights, and the config node that builds it again."""

    model: nn.Module
    node: Mapping[str, Any]
    public: Public
    report: LoadReport


@cache
def zoo() -> tuple[Public, ...]:
    """All entries of all systems."""
    files = sorted((Path(__file__).parents[1] / "systems").glob("*/zoo.yaml"))
    return tuple(Public(**entry) for file in files for entry in yaml.safe_load(file.read_text(encoding="utf-8")))


def names() -> tuple[str, ...]:
    """Hub names that `open_public` knows."""
    return tuple(entry.name for entry in zoo() if entry.name is not None)


def open_public(source: str, *, model: str | None = None) -> Network:
    """The network of a public checkpoint: a hub name or a file; `model` (a file of configs/model) overrules the zoo's.

    ValueError for weights that no system of the zoo reads, and for those that would leave part of it random.
    """
    public, choice = identify(source, model)
    node = model_node(choice, public.settings if model is None or choice.removesuffix("_tiny") == public.model else {})
    network = instantiate(node)
    report = load_weights(network, source)
    unused = network.unused_parameters() if hasattr(network, "unused_parameters") else frozenset()
    absent = [name for name in report.missing if name not in unused]
    untrained = _metadata(source).get("untrained", "")
    if absent or untrained:
        left = ", ".join(absent[:3]) if absent else untrained
        raise ValueError(
            f"{source} is a start for training {choice!r}, not a finished model: {left} would stay random. Train it "
            f"with init_from={source}, or leave out model= to take the system that the file is of ({public.title})"
        )
    return Network(network, node, public, report)


def model_node(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The plain config node of a file of configs/model with some entries replaced; ValueError lists the files."""
    known = sorted(stems(config_dirs(), "model"))
    if model not in known:
        raise ValueError(f"model={model!r} is not one of {', '.join(known)}")
    return plain(compose("train", [f"model={model}"]).model) | dict(settings)


def identify(source: str, model: str | None = None) -> tuple[Public, str]:
    """(the family, the model's config file); ValueError where the tensors are of none."""
    by_name = [entry for entry in zoo() if entry.name == source]
    if by_name:
        return by_name[0], model or by_name[0].model
    note = _metadata(source)
    if note.get("format") == CONVERTED:
        family = next((entry for entry in zoo() if entry.layout == note.get("layout")), None)
        return family or _converted(note, source), model or note.get("model", "")
    families = _families()
    weights = read_weights(source, layouts=[layout for layout, _ in families.values()])
    # files of one system may hold all that marks another's: the one whose names say more of the file is meant
    fitting = [name for name, (layout, _) in families.items() if layout.matches(weights.state)]
    best = max(fitting, key=lambda name: len(families[name][1].intersection(weights.state)))
    family = next(entry for entry in zoo() if entry.layout == best)
    return family, model or family.model


def _converted(note: Mapping[str, str], source: str) -> Public:
    origin = note.get("source", source)
    return Public(f"converted from {origin}", note.get("model", ""), "partseg", f"unknown ({origin})", "unknown", "-")


def _families() -> dict[str, tuple[WeightLayout, frozenset[str]]]:
    """Name -> the layout and its tensor names; systems say them, so each is built without memory."""
    found: dict[str, tuple[WeightLayout, frozenset[str]]] = {}
    for entry in zoo():
        if entry.layout in found:
            continue
        with torch.device("meta"):
            network = instantiate(model_node(entry.model, entry.settings))
        layout = next(each for each in layouts_of(network) if each.name == entry.layout)
        links = layout.links(network.state_dict())
        found[entry.layout] = layout, frozenset(name for link in links for name in link.theirs)
    return found


def _metadata(source: str) -> Mapping[str, str]:
    path = Path(source)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except Exception:  # a damaged file: read_weights says what is wrong with it
        return {}
