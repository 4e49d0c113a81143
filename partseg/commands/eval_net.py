"""Evaluate a checkpoint under every protocol at once and write results.json. Settings are in configs/eval.yaml.

partseg eval ckpt=output/part_clipseg_pascal_part_116    on the data set that it was trained on
partseg eval ... launch.num_gpus=8                       the same integers on any number of processes
partseg eval ... evaluator=boundary save_predictions=true plots=true
partseg eval dataset=pascal_part_116 ckpt=output/part_clipseg_ade20k_part_234 cross_dataset=true
partseg eval ... ckpt=output/cutter names=output/part_clipseg_pascal_part_116 evaluator=oracle_obj
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from partseg.data.dataset import PartSegDataset
from partseg.data.loader import build_eval_loader
from partseg.engine import scores
from partseg.engine.build import evaluation_set, own_dataset
from partseg.engine.checkpoint import digest, load, load_model, resolve
from partseg.engine.launch import device_of, launch
from partseg.engine.run import log_beginning, plain, stage
from partseg.engine.writers import start_log
from partseg.evaluation import plots, results
from partseg.evaluation.naming import Named
from partseg.evaluation.predictions import PredictionWriter
from partseg.evaluation.report import table
from partseg.evaluation.runner import Evaluation, run
from partseg.evaluation.setting import dataset_name, evaluation_vocabulary
from partseg.utils import devices, distributed
from partseg.utils.cli import cli
from partseg.utils.config import instantiate
from partseg.vocabulary.names import Vocabulary


@cli("eval")
def main(cfg: DictConfig) -> None:
    own_dataset(cfg, HydraConfig.get().overrides.task)
    if cfg.plots:
        plots.check()
    launch(evaluate, cfg)


def evaluate(cfg: DictConfig) -> None:
    """One process of the evaluation."""
    start_log(None)
    log_beginning()
    device = device_of(cfg)
    devices.set_tf32(cfg.train.tf32)
    with stage("checkpoint"):
        model, trained, trained_config = load_model(cfg.ckpt, plugins=cfg.plugins)
    if cfg.names is not None:
        with stage("names"):
            model = Named(model, load_model(cfg.names, plugins=cfg.plugins)[0])
    with stage("data set"):
        dataset = evaluation_set(cfg, model.input)  # type: ignore[arg-type]
    vocabulary = evaluation_vocabulary(
        trained,
        dataset.vocabulary,
        trained_on=dataset_name(trained_config["dataset"]),
        dataset=dataset_name(plain(cfg)["eval_dataset"]),
        cross_dataset=cfg.cross_dataset,
    )
    output = output_folder(cfg, dataset.name)
    loader = build_eval_loader(
        dataset,
        batch_size=cfg.eval.batch_size,
        num_workers=cfg.eval.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=device.type == "cuda",
    )
    writer = PredictionWriter(output / "predictions", num_classes=len(vocabulary)) if cfg.save_predictions else None
    if writer is not None:
        distributed.from_main(writer.begin)
    console = Console()
    hidden = not (distributed.is_main() and console.is_terminal)
    with stage("network on its device"):
        model = model.to(device)
    evaluation = run(
        model,
        track(loader, f"evaluating {dataset.name}", console=console, disable=hidden, transient=True),
        vocabulary=vocabulary,
        predictor=instantiate(cfg.predictor),
        evaluators=instantiate(cfg.evaluator),
        on_labels=writer,
    )
    if evaluation.num_images != len(dataset):
        raise RuntimeError(f"{evaluation.num_images} images were counted, the data set has {len(dataset)}")
    if distributed.is_main():
        if writer is not None:
            writer.finish()
        report(cfg, output, content(cfg, dataset, vocabulary, trained, trained_config, evaluation))


def output_folder(cfg: DictConfig, dataset: str) -> Path:
    """`output`, or the checkpoint's run directory (a folder in it for another data set)."""
    if cfg.output is not None:
        return Path(cfg.output)
    folder = resolve(cfg.ckpt).parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    return folder / dataset if cfg.cross_dataset else folder


def content(
    cfg: DictConfig,
    dataset: PartSegDataset,
    vocabulary: Vocabulary,
    trained: Vocabulary,
    trained_config: Mapping[str, Any],
    evaluation: Evaluation,
) -> dict[str, Any]:
    """What results.json holds, see partseg/evaluation/results.py."""
    values = scores.content(
        cfg,
        evaluation,
        dataset=dataset,
        vocabulary=vocabulary,
        checkpoint=scores.describe_checkpoint(cfg.ckpt, iteration=load(cfg.ckpt)["iteration"], trained=trained),
        trained_on=trained_config["dataset"],
        cross_dataset=bool(cfg.cross_dataset),
    )
    return values | {"names": None if cfg.names is None else {"path": str(cfg.names), "sha256": digest(cfg.names)}}


def report(cfg: DictConfig, output: Path, values: dict[str, Any]) -> None:
    """Write the file and the pictures, show the table."""
    path = results.write(output, values)
    console = Console()
    console.print(table(values))
    seconds = values["seconds_per_image"]
    console.print(
        f"network {seconds['network']:.3f} s, post-processing {seconds['postprocess']:.3f} s per image; {path}"
    )
    if cfg.plots:
        plots.save_plots(values, output / "plots")


command = main
