"""Predictions of a checkpoint over a data set or a folder of photos, as labels that another training reads.

    python tools/export_predictions.py ckpt=output/run dataset=pascal_part_116 eval.split=train output=labels/pascal
    python tools/export_predictions.py ckpt=output/run dataset=folder dataset.root=photos/ output=labels/photos
    torchrun --nnodes 4 --nproc-per-node 8 ... tools/export_predictions.py ckpt=... output=...

Writes shard-00000.json and so on (COCO-style: images, categories, annotations with RLE, score, parent_id), each whole
or not at all. The same command goes on where it stopped, on any number of processes. dataset=coco_style reads the
shards (dataset.annotations='shard-*.json'). Settings are in configs/export.yaml.
"""

from pathlib import Path

from omegaconf import DictConfig

from partseg.engine.build import evaluation_set
from partseg.engine.checkpoint import digest, load_model
from partseg.engine.launch import device_of, launch
from partseg.evaluation.export import ExportOptions, export
from partseg.utils import distributed, env
from partseg.utils.cli import cli
from partseg.utils.config import instantiate


@cli("export")
def main(cfg: DictConfig) -> None:
    launch(run, cfg)


def run(cfg: DictConfig) -> None:
    """One process of the export."""
    env.set_tf32(cfg.train.tf32)
    model, _, _ = load_model(cfg.ckpt, plugins=cfg.plugins)
    dataset = evaluation_set(cfg, model.input)  # type: ignore[arg-type]
    options = ExportOptions(**cfg.export, batch_size=cfg.eval.batch_size, num_workers=cfg.eval.num_workers)
    count = export(
        model.to(device_of(cfg)),
        dataset,
        Path(cfg.output),
        options,
        predictor=instantiate(cfg.predictor),
        checkpoint=digest(cfg.ckpt),
    )
    if distributed.is_main():
        print(f"{count} photos now, {len(dataset)} in all: {cfg.output}")


if __name__ == "__main__":
    main()
