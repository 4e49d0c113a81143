"""PartCLIPSeg on Pascal-Part-116, trained by detectron2's tools/lazyconfig_train_net.py; see detectron2.md."""

import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler

from partseg.engine.checkpoint import init_from
from partseg.engine.run import plain
from partseg.integrations import detectron2 as bridge
from partseg.utils.config import compose, instantiate
from partseg.vocabulary.shipped import shipped

TRAIN, TEST, WORDS = "partseg_pascal_part_116_train", "partseg_pascal_part_116_val", "pascal_part_116"
bridge.register_datasets()  # below $DETECTRON2_DATASETS, or data/


def build_model(experiment: str) -> bridge.Detectron2Model:
    """The network and criterion of one of our experiments, start weights loaded."""
    config = compose("train", [f"experiment={experiment}"])
    network = instantiate(config.model)
    if config.init_from:
        init_from(network, config.init_from)
    criterion = instantiate(config.criterion)
    return bridge.Detectron2Model(network, vocabulary=shipped(WORDS), criterion=criterion, config=plain(config))


def mapper(name: str, is_train: bool) -> bridge.PartSegMapper:
    """Images at the network's 352 x 352 pixels."""
    return bridge.PartSegMapper.of(name, size=352, is_train=is_train)


model = L(build_model)(experiment="part_clipseg_pascal_part_116")
dataloader = {
    "train": L(build_detection_train_loader)(
        dataset=L(DatasetCatalog.get)(name=TRAIN),
        mapper=L(mapper)(name=TRAIN, is_train=True),
        total_batch_size=8,
        num_workers=4,
    ),
    "test": L(build_detection_test_loader)(
        dataset=L(DatasetCatalog.get)(name=TEST), mapper=L(mapper)(name=TEST, is_train=False), num_workers=4
    ),
    "evaluator": L(bridge.Detectron2Evaluator)(vocabulary=L(shipped)(name=WORDS)),
}
# That tool puts the model into optimizer.params. It does not clip gradients; our own trainer does, as the paper.
optimizer = L(torch.optim.AdamW)(params=L(get_default_optimizer_params)(), lr=1e-4, weight_decay=1e-4)
lr_multiplier = L(PolynomialDecayParamScheduler)(base_value=1.0, power=0.9)
train = {  # what that tool reads; model_zoo has a file with it, which needs the pkg_resources of old setuptools
    "output_dir": "output/detectron2",
    "init_checkpoint": "",
    "max_iter": 20000,
    "amp": {"enabled": False},
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
    "checkpointer": {"period": 1000, "max_to_keep": 3},
    "eval_period": 1000,
    "log_period": 20,
    "device": "cuda",
}
