"""What training and evaluation tools build alike from a config."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from omegaconf import DictConfig, open_dict
from torch import nn

from partseg.data.dataset import PartSegDataset
from partseg.data.mapper import EvalMapper
from partseg.data.mixture import Mixture
from partseg.engine.checkpoint import load
from partseg.evaluation import results
from partseg.geometry import InputSpec
from partseg.system import check_system
from partseg.utils import distributed, targets
from partseg.utils.config import instantiate, stored
from partseg.weights.freeze import module_of
from partseg.weights.load import LoadReport

TOWER = 10_000
"""Weights. Less than that is a vector that an author left at its random start, not a tower that was forgotten."""


@runtime_checkable
class HasUnused(Protocol):
    """A system that knows which of its parameters reach no output."""

    def unused_parameters(self) -> frozenset[str]:
        """Their names."""
        ...


P = ParamSpec("P")
R = TypeVar("R")


def build_model(config: DictConfig) -> nn.Module:
    """The network of `model`; TypeError that names the file where its class is no System."""
    model = instantiate(config.model)
    check_system(model, source=f"config key 'model' (_target_: {config.model._target_})")
    return model


def start_weights(config: DictConfig) -> tuple[str, ...]:
    """The files and hub names of `init_from`, in order."""
    source = config.init_from
    return (source,) if isinstance(source, str) else tuple(source or ())


def compile_passes(model: nn.Module, *, backend: str = "inductor", fullgraph: bool = False) -> None:
    """torch.compile the methods that the system names in `passes`, for training; ValueError where it names none.

    Where gradients are off they run as they are written: an evaluation works in chunks that bound its memory.
    """
    passes: tuple[str, ...] = getattr(model, "passes", ())
    if not passes:
        raise ValueError(f"train.compile=true: {type(model).__name__} has no `passes` to compile; set it to false")
    for name in passes:
        owner = model.get_submodule(name.rpartition(".")[0])
        method = name.rpartition(".")[2]
        function = getattr(owner, method)
        setattr(owner, method, _in_training(torch.compile(function, backend=backend, fullgraph=fullgraph), function))


def _in_training(compiled: Callable[P, R], function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return (compiled if torch.is_grad_enabled() else function)(*args, **kwargs)

    return run


def sync_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with batch statistics over all processes; ValueError on several CPU processes, where torch has none."""
    if distributed.world_size() > 1 and device.type == "cpu":
        raise ValueError(
            "train.sync_batch_norm=true needs GPUs: on the CPU use launch.num_processes=1, or give "
            "train.sync_batch_norm=false for statistics of each process alone"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def check_start(
    model: nn.Module, node: Mapping[str, Any], reports: Sequence[LoadReport], *, allow_random: bool
) -> None:
    """ValueError where a part of the network that never trains starts from random weights.

    `node` is the model's config: what its `pretrained` entries name was loaded when it was built. `reports` say what
    each file of start weights lacked.
    """
    loaded = tuple(
        key[: -len("pretrained")] for key, value in targets.walk(node) if key.endswith("pretrained") and value
    )
    never_read = model.unused_parameters() if isinstance(model, HasUnused) else frozenset()
    random = {name for name, _ in model.named_parameters()}.intersection(*(report.missing for report in reports))
    frozen: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if name in random - never_read and not parameter.requires_grad and not name.startswith(loaded):
            frozen[module_of(name)] = frozen.get(module_of(name), 0) + parameter.numel()
    parts = [f"{name} ({count:,} weights)" for name, count in frozen.items() if count >= TOWER]
    if parts and not allow_random:
        raise ValueError(
            f"{', '.join(parts)}: random and frozen, so nothing could be learned from it. Give start weights "
            "(init_from=<file or hub name>, model.backbone.pretrained=openai), train it (model.trainable), or say "
            "allow_random=true where that is meant"
        )


def chooses_data(overrides: Sequence[str]) -> bool:
    """Does the command line say what to evaluate on?"""
    return any(re.match(r"\+?((eval_)?dataset(@eval_dataset)?[.=]|experiment=|debug=)", word) for word in overrides)


def own_dataset(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Evaluate on what the checkpoint's training was watched on, unless the command line chooses."""
    if not chooses_data(overrides):
        node = stored(load(cfg.ckpt)["config"]["eval_dataset"], group="dataset", plugins=cfg.plugins)
        with open_dict(cfg):
            cfg.eval_dataset = node


def evaluation_set(config: DictConfig, input: InputSpec | None) -> PartSegDataset:
    """The split that `eval` names, as a system with this input sees it; None for those who read labels only."""
    settings = config.eval
    mapper = EvalMapper(
        input,
        objects=settings.objects,
        instances=settings.instances,
        phrases=instantiate(config.phrases) if settings.phrases else None,
        photo=input is not None and bool(config.predictor.get("object_first")),
    )
    return first(settings.limit_images, instantiate(config.eval_dataset, split=settings.split, mapper=mapper))


def training_set(config: DictConfig) -> PartSegDataset | Mixture:
    """The data set or mixture that is trained on."""
    mapper = instantiate(config.augmentation)
    return first(config.train.limit_images, instantiate(config.dataset, split="train", mapper=mapper, seed=config.seed))


def is_synthetic(dataset: PartSegDataset | Mixture) -> bool:
    """Is any of what is trained on drawn, by its provenance.json?"""
    return any(results.is_synthetic(source.dataset.records[0].file_name) for source in Mixture.of(dataset).sources)


def first(count: int | None, dataset: Any) -> Any:
    """The first `count` images; all of them for None."""
    return dataset if count is None else dataset.subset(range(min(count, len(dataset))))
