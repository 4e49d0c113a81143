"""The parts of detectron2's documented interface that the bridge touches, for machines without the package.

Written from its documentation, not from its code: catalogs that refuse a second registration and changed metadata,
a registry that takes names from objects, an evaluation loop, a trainer step that sums a loss dictionary, and a
checkpointer that loads `ckpt["model"]` with strict=False.
"""

import sys
from collections import UserDict
from contextlib import contextmanager
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
    def __init__(self, model):
        self.model = model

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


@contextmanager
def installed():
    """Let `import detectron2` find this file's classes."""
    modules = {
        "detectron2": {},
        "detectron2.data": {"DatasetCatalog": DatasetCatalog(), "MetadataCatalog": MetadataCatalog()},
        "detectron2.evaluation": {
            "DatasetEvaluator": DatasetEvaluator,
            "inference_on_dataset": inference_on_dataset,
        },
        "detectron2.modeling": {"META_ARCH_REGISTRY": Registry()},
        "detectron2.checkpoint": {"DetectionCheckpointer": DetectionCheckpointer},
        "detectron2.engine": {"SimpleTrainer": SimpleTrainer},
    }
    for name, content in modules.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
