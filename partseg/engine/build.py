"""What training and evaluation tools build alike from a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from omegaconf import DictConfig
from torch import nn

from partseg.data.dataset import PartSegDataset
from partseg.data.mapper import EvalMapper
from partseg.data.mixture import Mixture
from partseg.evaluation import results
from partseg.geometry import InputSpec
from partseg.system import check_system
from partseg.utils import targets
from partseg.utils.config import instantiate
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


def build_model(config: DictConfig) -> nn.Module:
    """The network of `model`; TypeError that names the file where its class is no System."""
    model = instantiate(config.model)
    check_system(model, source=f"config key 'model' (_target_: {config.model._target_})")
    return model


def check_start(model: nn.Module, node: Mapping[str, Any], report: LoadReport | None, *, allow_random: bool) -> None:
    """ValueError where a part of the network that never trains starts from random weights.

    `node` is the model's config: what its `pretrained` entries name was loaded when it was built. `report` says what
    start weights lacked.
    """
    loaded = tuple(
        key[: -len("pretrained")] for key, value in targets.walk(node) if key.endswith("pretrained") and value
    )
    never_read = model.unused_parameters() if isinstance(model, HasUnused) else frozenset()
    random = {name for name, _ in model.named_parameters()} if report is None else set(report.missing)
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


def evaluation_set(config: DictConfig, input: InputSpec | None) -> PartSegDataset:
    """The split that `eval` names, as a system with this input sees it; None for those who read labels only."""
    settings = config.eval
    mapper = EvalMapper(input, objects=settings.objects, instances=settings.instances, phrases=settings.phrases)
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
