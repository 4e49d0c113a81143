"""Two plain baselines: the untrained network, and the most frequent part of the given object, or for phrases its box.

    python tools/toy_baselines.py experiment=toy_part_clipseg

Writes output/<name>/baselines/<baseline>/results.json; baselines that are there are kept.
"""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from partseg.data.dataset import PartSegDataset
from partseg.data.loader import build_eval_loader
from partseg.engine.build import evaluation_set, start_weights
from partseg.engine.checkpoint import init_from
from partseg.engine.run import plain
from partseg.evaluation import results, runner
from partseg.evaluation.baselines import label_with, most_frequent_parts, whole_objects
from partseg.evaluation.evaluator import Answer, Result
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.protocols import OracleObj
from partseg.evaluation.referring import ReferringEvaluator
from partseg.evaluation.report import table
from partseg.utils import env
from partseg.utils.cli import cli
from partseg.utils.config import instantiate

CONSOLE = Console()
NO_COST = {
    "seconds_per_image": None,
    "peak_memory_bytes": None,
    "peak_device_memory_bytes": None,
    "num_processes": 1,
}


@cli("train")
def main(cfg: DictConfig) -> None:
    dataset = evaluation_set(cfg, instantiate(cfg.model).input)
    folder = Path(cfg.output_root) / cfg.name / "baselines"
    referring = any(evaluator.words == "phrases" for evaluator in instantiate(cfg.evaluator).values())
    plainest = ("whole_object", whole_object) if referring else ("most_frequent_part", most_frequent_part)
    for name, measure in (plainest, ("untrained", untrained)):
        if (folder / name / results.FILE_NAME).is_file():
            CONSOLE.print(f"{folder / name}: measured before, kept")
            continue
        found, cost = measure(cfg, dataset)
        values = results.describe_dataset(dataset, dataset.vocabulary) | {
            "cross_dataset": False,
            "checkpoint": None,
            "protocols": {key: entry.describe() for key, entry in found.items()},
            **cost,
            "config": plain(cfg),
            "git_commit": env.git_commit(),
            "environment": env.report(),
        }
        (folder / name).mkdir(parents=True, exist_ok=True)
        path = results.write(folder / name, values)
        CONSOLE.print(table(values))
        CONSOLE.print(f"{name}: {path}")


def most_frequent_part(cfg: DictConfig, dataset: PartSegDataset) -> tuple[dict[str, Result], dict[str, Any]]:
    """Oracle-Obj only, since it needs the object; counted on the validation split itself, which favours it."""
    vocabulary = dataset.vocabulary
    parts = most_frequent_parts((dataset[i] for i in range(len(dataset))), vocabulary)
    evaluator = PixelEvaluator(OracleObj())
    evaluator.reset(vocabulary)
    for index in track(range(len(dataset)), "most frequent part", console=CONSOLE):
        sample = dataset[index]
        evaluator.count(label_with(parts, sample.object, vocabulary), sample)
    return {"oracle_obj": evaluator.evaluate()}, NO_COST


def whole_object(cfg: DictConfig, dataset: PartSegDataset) -> tuple[dict[str, Result], dict[str, Any]]:
    """The box of the object that a phrase is about, which it is told."""
    evaluator = ReferringEvaluator()
    evaluator.reset(dataset.vocabulary)
    for index in track(range(len(dataset)), "whole object", console=CONSOLE):
        sample = dataset[index]
        if sample.phrases:
            evaluator.process(Answer(whole_objects(sample, dataset.vocabulary), dataset.vocabulary), sample)
    return {"referring": evaluator.evaluate()}, NO_COST


def untrained(cfg: DictConfig, dataset: PartSegDataset) -> tuple[dict[str, Result], dict[str, Any]]:
    """The network that training starts from."""
    env.seed_everything(cfg.seed)
    model = instantiate(cfg.model)
    for source in start_weights(cfg):
        init_from(model, source)
    loader = build_eval_loader(dataset, batch_size=cfg.eval.batch_size, num_workers=0, rank=0, world_size=1)
    batches = track(loader, "untrained network", total=-(-len(dataset) // cfg.eval.batch_size), console=CONSOLE)
    with torch.inference_mode():
        evaluation = runner.run(
            model,
            batches,
            vocabulary=dataset.vocabulary,
            predictor=instantiate(cfg.predictor),
            evaluators=instantiate(cfg.evaluator),
        )
    return evaluation.results, results.describe_cost(evaluation)


if __name__ == "__main__":
    main()
