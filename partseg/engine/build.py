"""What training and evaluation tools build alike from a config."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import nn

from partseg.data.dataset import PartSegDataset
from partseg.data.mapper import EvalMapper
from partseg.data.mixture import Mixture
from partseg.evaluation import results
from partseg.geometry import InputSpec
from partseg.system import check_system
from partseg.utils.config import instantiate


def build_model(config: DictConfig) -> nn.Module:
    """The network of `model`; TypeError that names the file where its class is no System."""
    model = instantiate(config.model)
    check_system(model, source=f"config key 'model' (_target_: {config.model._target_})")
    return model


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
