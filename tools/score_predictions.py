"""Score predicted label PNGs, any model's, by the code that scores our own; writes results.json and shows the table.

    python tools/score_predictions.py predictions=output/run/predictions eval_dataset=pascal_part_116
    python tools/score_predictions.py predictions=/their/pngs evaluator=oracle_obj output=scores/theirs bits=8

Each evaluator reads <predictions>/<evaluator>/<image id>.png, or <predictions>/<image id>.png when there is no such
folder. Ids are object-parts 0..K-1 in the data set's order; the largest value (255 or 65535) is background.
"""

from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from partseg.engine.build import evaluation_set
from partseg.engine.run import plain
from partseg.evaluation import plots, results
from partseg.evaluation.predictions import read_prediction
from partseg.evaluation.report import table
from partseg.utils import env
from partseg.utils.cli import cli
from partseg.utils.config import instantiate


@cli("score")
def main(cfg: DictConfig) -> None:
    score(cfg)


def score(cfg: DictConfig) -> None:
    """Score the folder of predictions."""
    dataset = evaluation_set(cfg, None)
    vocabulary = dataset.vocabulary.with_unseen(()) if cfg.all_seen else dataset.vocabulary
    evaluators = instantiate(cfg.evaluator)
    folders = {name: prediction_folder(Path(cfg.predictions), name) for name in evaluators}
    output = Path(cfg.output if cfg.output is not None else cfg.predictions)
    for evaluator in evaluators.values():
        evaluator.reset(vocabulary)
    console = Console()
    for sample in track(
        (dataset[i] for i in range(len(dataset))), total=len(dataset), console=console, disable=not console.is_terminal
    ):
        for name, evaluator in evaluators.items():
            with torch.inference_mode():
                labels = read_prediction(folders[name], sample, len(vocabulary), bits=cfg.bits)
                evaluator.count(labels, sample)
    values = results.describe_dataset(dataset, vocabulary) | {
        "cross_dataset": False,
        "checkpoint": None,
        "protocols": {name: e.evaluate().describe() for name, e in evaluators.items()},
        "seconds_per_image": None,
        "peak_memory_bytes": None,
        "peak_device_memory_bytes": None,
        "num_processes": 1,
        "config": plain(cfg),
        "git_commit": env.git_commit(),
        "environment": env.report(),
    }
    path = results.write(output, values)
    console.print(table(values))
    console.print(str(path))
    if cfg.plots:
        plots.save_plots(values, output / "plots")


def prediction_folder(root: Path, name: str) -> Path:
    """Folder of one evaluator's PNGs."""
    folder = root / name if (root / name).is_dir() else root
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {root}; predictions= must name one with label PNGs")
    return folder


if __name__ == "__main__":
    main()
