"""What detectron2's DefaultTrainer and DefaultPredictor need of us: a meta-architecture, its config keys, an optimizer.

docs/detectron2_train_net.py is the whole program.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from partseg.data import catalog
from partseg.engine.build import build_model
from partseg.engine.checkpoint import init_from, load_model, resolve
from partseg.engine.run import plain
from partseg.integrations.detectron2 import Detectron2Evaluator, Detectron2Model, build_dataset
from partseg.utils.config import compose, instantiate, stored


def add_config(cfg: Any) -> None:
    """Our keys, and the paper's optimizer, in a yacs config: `PARTSEG.EXPERIMENT` names one of our experiments."""
    cfg.PARTSEG = CfgNode()
    cfg.PARTSEG.EXPERIMENT = ""
    cfg.PARTSEG.OVERRIDES = []
    cfg.MODEL.META_ARCHITECTURE = register_meta_architecture()
    cfg.MODEL.WEIGHTS = ""
    cfg.INPUT.FORMAT = "RGB"
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01


def register_meta_architecture() -> str:
    """Make cfg.MODEL.META_ARCHITECTURE = "PartSeg" build our networks; returns that name."""
    if "PartSeg" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(PartSeg)
    return "PartSeg"


def PartSeg(cfg: Any) -> Detectron2Model:
    """The network of `PARTSEG.EXPERIMENT`, or of the checkpoint or run directory `MODEL.WEIGHTS`, with its criterion.

    It is evaluated with the vocabulary of the data set cfg.DATASETS.TEST[0] (one of ours).
    """
    vocabulary = build_dataset(cfg.DATASETS.TEST[0]).vocabulary
    options: dict[str, Any] = {"vocabulary": vocabulary, "input_format": cfg.INPUT.FORMAT}
    if getattr(cfg, "PARTSEG", None) is not None and cfg.PARTSEG.EXPERIMENT:
        config = compose("train", [f"experiment={cfg.PARTSEG.EXPERIMENT}", *cfg.PARTSEG.OVERRIDES])
        network = build_model(config)
        if config.init_from and not cfg.MODEL.WEIGHTS:
            init_from(network, config.init_from)
        options |= {"criterion": instantiate(config.criterion), "config": plain(config)}
        return Detectron2Model(network, **options).to(cfg.MODEL.DEVICE)
    network, trained, stored_config = load_model(cfg.MODEL.WEIGHTS)
    criterion = instantiate(stored(stored_config["criterion"], group="criterion"))
    options |= {"train_vocabulary": trained, "criterion": criterion, "config": stored_config}
    return Detectron2Model(network, **options).to(cfg.MODEL.DEVICE)


def build_evaluator(name: str) -> Detectron2Evaluator:
    """The evaluator of a registered data set; ValueError for one that is not ours."""
    metadata = MetadataCatalog.get(name)
    if getattr(metadata, "evaluator_type", None) != "partseg":
        raise ValueError(f"{name!r} has evaluator_type {getattr(metadata, 'evaluator_type', None)!r}, not 'partseg'")
    return Detectron2Evaluator(catalog.vocabulary(metadata.partseg_dataset))


def weights_file(path: str) -> str:
    """A file for DetectionCheckpointer, which takes no folders: the newest checkpoint of a run directory of ours."""
    return str(resolve(path).resolve()) if path and Path(path).is_dir() else path


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW that clips the norm of the whole gradient to CLIP_VALUE, as the paper; detectron2's clips each weight."""
    settings, trained = cfg.SOLVER, [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.BASE_LR, weight_decay=settings.WEIGHT_DECAY)
    if settings.CLIP_GRADIENTS.ENABLED:
        limit = settings.CLIP_GRADIENTS.CLIP_VALUE

        def clip(own: torch.optim.Optimizer, *_: Any) -> None:
            weights = itertools.chain.from_iterable(group["params"] for group in own.param_groups)
            nn.utils.clip_grad_norm_(weights, limit)

        optimizer.register_step_pre_hook(clip)
    return optimizer
