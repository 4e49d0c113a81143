"""What results.json says of a checkpoint, whether `partseg eval` scored it or the training itself at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from partseg.data.dataset import PartSegDataset
from partseg.engine.checkpoint import digest
from partseg.engine.run import plain, run_directory
from partseg.evaluation import results
from partseg.evaluation.runner import Evaluation
from partseg.evaluation.setting import adaptation, dataset_name
from partseg.utils import env
from partseg.vocabulary.names import Vocabulary


def content(
    config: DictConfig,
    evaluation: Evaluation,
    *,
    dataset: PartSegDataset,
    vocabulary: Vocabulary,
    checkpoint: Mapping[str, Any],
    trained_on: Mapping[str, Any],
    cross_dataset: bool,
) -> dict[str, Any]:
    """The entries of partseg/evaluation/results.py; `vocabulary` was scored with, `trained_on` is a config node."""
    evaluated = {**plain(config)["eval_dataset"], "split": config.eval.split}
    return results.describe_dataset(dataset, vocabulary) | {
        "cross_dataset": cross_dataset,
        "adaptation": adaptation(trained_on, evaluated, dataset.manifest_hash),
        "checkpoint": dict(checkpoint),
        "protocols": {name: result.describe() for name, result in evaluation.results.items()},
        **results.describe_cost(evaluation),
        "config": plain(config),
        "git_commit": env.git_commit(),
        "environment": env.report(),
    }


def describe_checkpoint(path: str | Path, *, iteration: int, trained: Vocabulary) -> dict[str, Any]:
    """The entry `checkpoint`."""
    vocabulary = {"name": trained.name, "key": trained.key}
    return {"path": str(path), "sha256": digest(path), "iteration": iteration, "vocabulary": vocabulary}


def write_last(
    evaluation: Evaluation,
    checkpoint: Path,
    *,
    config: DictConfig,
    dataset: PartSegDataset,
    trained: Vocabulary,
    iteration: int,
) -> None:
    """results.json of a training's last evaluation, in the run's directory."""
    node, watched = plain(config)["dataset"], plain(config)["eval_dataset"]
    described = describe_checkpoint(checkpoint, iteration=iteration, trained=trained)
    values = content(
        config,
        evaluation,
        dataset=dataset,
        vocabulary=dataset.vocabulary,
        checkpoint=described,
        trained_on=node,
        cross_dataset=dataset_name(node) != dataset_name(watched),
    )
    results.write(run_directory(config), values)
