"""Superpixels inside the annotated objects, scored as segments without names: baselines of class-agnostic systems.

    python tools/superpixels.py dataset=pascal_part_116 eval.instances=classes

All methods and parameters of partseg/evaluation/superpixels.py, one after another; needs the superpixels extra.
Settings are those of configs/train.yaml, of which eval_dataset and eval are used. Writes
output/<name>/superpixels/<method>/results.json; those that are there are kept.
"""

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from partseg.data.dataset import PartSegDataset
from partseg.engine.build import evaluation_set
from partseg.engine.run import plain
from partseg.evaluation import results
from partseg.evaluation.evaluator import Answer
from partseg.evaluation.instances import InstanceEvaluator
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.protocols import SemanticOracle
from partseg.evaluation.report import table
from partseg.evaluation.runner import process_image
from partseg.evaluation.superpixels import GRID, Superpixels, cut, title
from partseg.utils import env
from partseg.utils.cli import cli

CONSOLE = Console()
NO_COST = {"seconds_per_image": None, "peak_memory_bytes": None, "peak_device_memory_bytes": None, "num_processes": 1}


@cli("train")
def main(cfg: DictConfig) -> None:
    dataset = evaluation_set(cfg, None)
    folder = Path(cfg.output_root) / cfg.name / "superpixels"
    for method in GRID:
        place = folder / title(method)
        if (place / results.FILE_NAME).is_file():
            CONSOLE.print(f"{place}: measured before, kept")
            continue
        values = results.describe_dataset(dataset, dataset.vocabulary) | {
            "cross_dataset": False,
            "checkpoint": None,
            "protocols": measure(method, dataset, instances=cfg.eval.instances is not None),
            **NO_COST,
            "config": plain(cfg),
            "git_commit": env.git_commit(),
            "environment": env.report(),
        }
        place.mkdir(parents=True, exist_ok=True)
        path = results.write(place, values)
        CONSOLE.print(table(values))
        CONSOLE.print(f"{title(method)}: {path}")


def measure(method: Superpixels, dataset: PartSegDataset, *, instances: bool) -> dict[str, Any]:
    """Entries of results.json of one method; `instances` says whether the data set is read with them."""
    metrics = ("iou", "accuracy")
    evaluators: dict[str, Any] = {
        "semantic_oracle": PixelEvaluator(SemanticOracle(), metrics=metrics),
        "semantic_oracle_background": PixelEvaluator(
            SemanticOracle(background=True), metrics=(*metrics, "with_background")
        ),
    }
    if instances:
        evaluators["segments"] = InstanceEvaluator(kinds=["masks"], class_agnostic=True, objects="truth")
    vocabulary = dataset.vocabulary
    for evaluator in evaluators.values():
        evaluator.reset(vocabulary)
    for index in track(range(len(dataset)), title(method), console=CONSOLE):
        sample = dataset[index]
        objects = sample.object.numpy()
        masks = [objects == i for i in np.unique(objects[objects < vocabulary.num_objects])]
        found = cut(method, np.ascontiguousarray(sample.image.numpy().transpose(1, 2, 0)), masks)
        process_image(Answer(found, vocabulary), sample, evaluators)
    return {name: evaluator.evaluate().describe() for name, evaluator in evaluators.items()}


if __name__ == "__main__":
    main()
