"""What training and evaluation tools build alike from a config."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import nn

from partseg.data.dataset import PartSegDataset
from partseg.data.mapper import EvalMapper
from partseg.data.mixture import Mixture
from partseg.geometry import InputSpec
from partseg.system import check_system
from partseg.utils.config import instantiate


def build_model(config: DictConfig) -> nn.Module:
    """The network of `model`; TypeError that names the file where its class is no System."""
    model = instantiate(config.model)
    check_system(model, source=f"config key 'model' (_target_: {config.model._target_})")
    return model


def start_weights(config: DictConfig) -> tuple[str, ...]:
    """The files and hub names of `init_from`, in order."""
    source = config.init_from
    return (source,) if isinstance(source, str) else tuple(source or ())


def evaluation_set(config: DictConfig, input: InputSpec | None) -> PartSegDataset:
    """The split that `eval` names, as a system with this input sees it; None for those who read labels only."""
    settings = config.eval
    mapper = EvalMapper(
        input,
        objects=settings.objects,
        instances=settings.instances,
        phrases=settings.phrases,
        photo=input is not None and bool(config.predictor.get("object_first")),
    )
    return first(settings.limit_images, instantiate(config.eval_dataset, split=settings.split, mapper=mapper))


def training_set(config: DictConfig) -> PartSegDataset | Mixture:
    """The data set or mixture that is trained on."""
    mapper = instantiate(config.augmentation)
    return first(config.train.limit_images, instantiate(config.dataset, split="train", mapper=mapper, seed=config.seed))


def first(count: int | None, dataset: Any) -> Any:
    """The first `count` images; all of them for None."""
    return dataset if count is None else dataset.subset(range(min(count, len(dataset))))
