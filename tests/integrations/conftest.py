"""The bridge behind the real detectron2 where it is installed, and behind its documented interface otherwise."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from partseg.data.mapper import EvalMapper
from partseg.engine.checkpoint import load_model

NAME = "partseg_toy_pascal_part_116"


def forget_ours():
    """The modules that were imported with another detectron2."""
    for name in ("detectron2", "detectron2_training"):
        sys.modules.pop(f"partseg.integrations.{name}", None)
        vars(importlib.import_module("partseg.integrations")).pop(name, None)


def load_fake():
    spec = importlib.util.spec_from_file_location("fake_detectron2", Path(__file__).with_name("fake_detectron2.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["documented interface", "real package"])
def bridge(request):
    if request.param == "real package":
        if importlib.util.find_spec("detectron2") is None:
            pytest.skip("detectron2 is not installed")
        yield importlib.import_module("partseg.integrations.detectron2")
        return
    forget_ours()
    with load_fake().installed():
        yield importlib.import_module("partseg.integrations.detectron2")
    forget_ours()


@pytest.fixture
def training(bridge):
    return importlib.import_module("partseg.integrations.detectron2_training")


@pytest.fixture
def data_root(toy_run):
    return toy_run.parent / "data"


@pytest.fixture
def evaluation(bridge, toy_run, data_root):
    """Wrapped model, data loader of mapped lists, and the partseg data set behind them."""
    bridge.register_datasets(data_root)
    model, train_vocabulary, _ = load_model(toy_run)
    mapper = bridge.PartSegMapper.of(f"{NAME}_val", size=model.input.size[0], is_train=False)
    wrapped = bridge.Detectron2Model(model, vocabulary=mapper.vocabulary, train_vocabulary=train_vocabulary)
    items = [mapper(item) for item in bridge.DatasetCatalog.get(f"{NAME}_val")]
    return wrapped, [items[:2], items[2:]], bridge.build_dataset(f"{NAME}_val", mapper=EvalMapper(model.input))
