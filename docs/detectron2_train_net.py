"""Our networks in detectron2's own training program; see detectron2.md.

python docs/detectron2_train_net.py --num-gpus 8 PARTSEG.EXPERIMENT part_clipseg_pascal_part_116
python docs/detectron2_train_net.py --eval-only MODEL.WEIGHTS output/my_run
python docs/detectron2_train_net.py --resume --config-file my.yaml
"""

import argparse
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch

from partseg.integrations import detectron2 as bridge
from partseg.integrations import detectron2_training as training


class Trainer(DefaultTrainer):
    """detectron2's, with our mapper, evaluator and optimizer."""

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        mapper = bridge.PartSegMapper.of(cfg.DATASETS.TRAIN[0], size=cfg.INPUT.SIZE, is_train=True)
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> Any:
        mapper = bridge.PartSegMapper.of(dataset_name, size=cfg.INPUT.SIZE, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> Any:
        return training.build_evaluator(dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: Any, model: Any) -> Any:
        return training.build_optimizer(cfg, model)


def setup(args: argparse.Namespace) -> Any:
    """The config: detectron2's defaults, ours, the file, the command line."""
    bridge.register_datasets()  # below $DETECTRON2_DATASETS, or data/
    cfg = get_cfg()
    training.add_config(cfg)
    cfg.DATASETS.TRAIN = ("partseg_pascal_part_116_train",)
    cfg.DATASETS.TEST = ("partseg_pascal_part_116_val",)
    cfg.INPUT.SIZE = 352
    cfg.SOLVER.IMS_PER_BATCH = 8
    cfg.SOLVER.MAX_ITER = 20000
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.OUTPUT_DIR = "output/detectron2"
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.MODEL.WEIGHTS = training.weights_file(cfg.MODEL.WEIGHTS)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> Any:
    """One process."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
