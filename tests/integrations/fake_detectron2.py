"""The parts of detectron2's documented interface that the bridge touches, for machines without the package.

Written from its documentation, not from its code: catalogs that refuse a second registration and changed metadata,
a registry that takes names from objects, an evaluation loop, a trainer step that sums a loss dictionary, a
checkpointer that loads `ckpt["model"]` with strict=False, a config, a predictor of a plain picture, a default trainer.
"""

import argparse
import sys
from collections import UserDict
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch


class DatasetCatalog(UserDict):
    def register(self, name, func):
        assert name not in self, f"{name} is registered already"
        self[name] = func

    def get(self, name):
        return self[name]()

    def remove(self, name):
        self.pop(name)


class Metadata(SimpleNamespace):
    def set(self, **values):
        for key, value in values.items():
            assert getattr(self, key, value) == value, f"{key} cannot change"
            setattr(self, key, value)
        return self


class MetadataCatalog(UserDict):
    def get(self, name):
        return self.setdefault(name, Metadata(name=name))

    def remove(self, name):
        self.pop(name)


class Registry(UserDict):
    def register(self, obj):
        assert obj.__name__ not in self, f"{obj.__name__} is registered already"
        self[obj.__name__] = obj


class DatasetEvaluator:
    def reset(self): ...

    def process(self, inputs, outputs): ...

    def evaluate(self): ...


def inference_on_dataset(model, data_loader, evaluator):
    len(data_loader)
    evaluator.reset()
    training = model.training
    model.eval()
    with torch.no_grad():
        for inputs in data_loader:
            evaluator.process(inputs, model(inputs))
    model.train(training)
    return evaluator.evaluate() or {}


class DetectionCheckpointer:
    def __init__(self, model, save_dir=""):
        self.model, self.folder = model, Path(save_dir)

    def save(self, name, **more):
        torch.save({"model": self.model.state_dict(), **more}, self.folder / f"{name}.pth")
        (self.folder / "last_checkpoint").write_text(f"{name}.pth")

    def resume_or_load(self, path, *, resume=True):
        return self.load(path) if path else {}

    def load(self, path):
        state = torch.load(path, map_location="cpu", weights_only=True)
        incompatible = self.model.load_state_dict(state.pop("model"), strict=False)
        assert not incompatible.missing_keys and not incompatible.unexpected_keys
        return state


class SimpleTrainer:
    def __init__(self, model, data_loader, optimizer):
        self.model, self.data, self.optimizer = model, iter(data_loader), optimizer

    def run_step(self):
        losses = self.model(next(self.data))
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()


class CfgNode(SimpleNamespace):
    def merge_from_list(self, pairs):
        for key, value in zip(pairs[::2], pairs[1::2]):
            *path, last = key.split(".")
            node = self
            for name in path:
                node = getattr(node, name)
            assert hasattr(node, last), f"no key {key}"
            setattr(node, last, value)

    def freeze(self): ...


def get_cfg():
    return CfgNode(
        MODEL=CfgNode(META_ARCHITECTURE="GeneralizedRCNN", WEIGHTS="", DEVICE="cpu"),
        DATASETS=CfgNode(TRAIN=(), TEST=()),
        INPUT=CfgNode(FORMAT="BGR"),
        SOLVER=CfgNode(
            BASE_LR=0.001,
            WEIGHT_DECAY=0.0,
            IMS_PER_BATCH=16,
            MAX_ITER=40000,
            LR_SCHEDULER_NAME="",
            WARMUP_ITERS=1000,
            CLIP_GRADIENTS=CfgNode(ENABLED=False, CLIP_VALUE=1.0),
        ),
        OUTPUT_DIR="./output",
    )


def build_model(cfg):
    return sys.modules["detectron2.modeling"].META_ARCH_REGISTRY[cfg.MODEL.META_ARCHITECTURE](cfg)


def build_detection_test_loader(cfg, dataset_name, *, mapper):
    return [[mapper(item)] for item in sys.modules["detectron2.data"].DatasetCatalog.get(dataset_name)]


def build_detection_train_loader(cfg, *, mapper):
    items = [mapper(item) for item in sys.modules["detectron2.data"].DatasetCatalog.get(cfg.DATASETS.TRAIN[0])]
    return [items[: cfg.SOLVER.IMS_PER_BATCH]] * cfg.SOLVER.MAX_ITER


class DefaultPredictor:
    """Of a picture [h, w, 3] in BGR: its shorter side to 800 pixels, here always half its size, and float32."""

    def __init__(self, cfg):
        self.cfg = cfg
        self.model = build_model(cfg).eval()
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)

    def __call__(self, original):
        height, width = original.shape[:2]
        image = original[:, :, ::-1] if self.cfg.INPUT.FORMAT == "RGB" else original
        image = torch.as_tensor(image[::2, ::2].astype("float32").transpose(2, 0, 1))
        with torch.no_grad():
            return self.model([{"image": image, "height": height, "width": width}])[0]


class DefaultTrainer:
    def __init__(self, cfg):
        self.cfg, self.model, self.losses = cfg, self.build_model(cfg), []
        self.optimizer = self.build_optimizer(cfg, self.model)
        self.loader = self.build_train_loader(cfg)

    build_model = staticmethod(build_model)

    def resume_or_load(self, resume=True):
        DetectionCheckpointer(self.model).resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)

    def train(self):
        self.model.train()
        for batch in self.loader:
            losses = self.model(batch)
            self.optimizer.zero_grad()
            sum(losses.values()).backward()
            self.optimizer.step()
            self.losses.append({name: value.item() for name, value in losses.items()})
        return self

    @classmethod
    def test(cls, cfg, model):
        name = cfg.DATASETS.TEST[0]
        return inference_on_dataset(model, cls.build_test_loader(cfg, name), cls.build_evaluator(cfg, name))


def default_argument_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config-file", default="")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--num-gpus", type=int, default=1)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    return parser


@contextmanager
def installed():
    """Let `import detectron2` find this file's classes."""
    modules = {
        "detectron2": {},
        "detectron2.config": {"CfgNode": CfgNode, "get_cfg": get_cfg},
        "detectron2.data": {
            "DatasetCatalog": DatasetCatalog(),
            "MetadataCatalog": MetadataCatalog(),
            "build_detection_test_loader": build_detection_test_loader,
            "build_detection_train_loader": build_detection_train_loader,
        },
        "detectron2.evaluation": {
            "DatasetEvaluator": DatasetEvaluator,
            "inference_on_dataset": inference_on_dataset,
        },
        "detectron2.modeling": {"META_ARCH_REGISTRY": Registry()},
        "detectron2.checkpoint": {"DetectionCheckpointer": DetectionCheckpointer},
        "detectron2.engine": {
            "SimpleTrainer": SimpleTrainer,
            "DefaultTrainer": DefaultTrainer,
            "DefaultPredictor": DefaultPredictor,
            "default_argument_parser": default_argument_parser,
            "default_setup": lambda cfg, args: None,
            "launch": lambda main, *_, args, **__: main(*args),
        },
    }
    for name, content in modules.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
