"""Predictions of a checkpoint over a data set or a folder of photos, as labels that another training reads.

    partseg export ckpt=output/run eval.split=train output=labels/own       # of the data set that it was trained on
    partseg export ckpt=output/run dataset=pascal_part_116 output=labels/pascal
    partseg export ckpt=output/run dataset=folder dataset.root=photos/ output=labels/photos
    torchrun --nnodes 4 --nproc-per-node 8 ... -m partseg export ckpt=... output=...

Writes shard-00000.json and so on (COCO-style: images, categories, annotations with RLE, score, parent_id), each whole
or not at all. The same command goes on where it stopped, on any number of processes. dataset=coco_style reads the
shards (dataset.annotations='shard-*.json'). Settings are in configs/export.yaml.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from partseg.engine.build import evaluation_set, own_dataset
from partseg.engine.checkpoint import digest, load_model
from partseg.engine.launch import device_of, launch
from partseg.evaluation.export import ExportOptions, export
from partseg.utils import devices, distributed
from partseg.utils.cli import cli
from partseg.utils.config import instantiate


@cli("export")
def main(cfg: DictConfig) -> None:
    own_dataset(cfg, HydraConfig.get().overrides.task)
    launch(run, cfg)


def run(cfg: DictConfig) -> None:
    """One process of the export."""
    devices.set_tf32(cfg.train.tf32)
    model, _, _ = load_model(cfg.ckpt, plugins=cfg.plugins)
    dataset = evaluation_set(cfg, model.input)  # type: ignore[arg-type]
    loading = {"batch_size": cfg.eval.batch_size, "num_workers": cfg.eval.num_workers}
    options = ExportOptions(**cfg.export, **loading, checkpoint=digest(cfg.ckpt))
    count = export(model.to(device_of(cfg)), dataset, Path(cfg.output), options, predictor=instantiate(cfg.predictor))
    if distributed.is_main():
        print(f"{count} photos now, {len(dataset)} in all: {cfg.output}")


command = main
