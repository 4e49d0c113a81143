"""A tiny synthetic data set and an untrained checkpoint of a tiny model, as training would leave them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from partseg.data.toy.writer import ToyOptions, write_toy
from partseg.engine.checkpoint import Checkpoints
from partseg.engine.run import plain
from partseg.utils.config import compose, instantiate

ROOT = Path(__file__).parents[2]
TOY = ("dataset=toy_pascal_part_116", "model=part_clipseg_tiny", "launch.num_gpus=0", "eval.num_workers=0")


def load_tool(name: str) -> ModuleType:
    """The tool as a module, for tests that call it without starting a process."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory with a checkpoint; the data set lies in `data/` beside it."""
    folder = tmp_path_factory.mktemp("toy_run")
    write_toy(folder / "data" / "ToyPascalPart116", ToyOptions(num_train=2, num_val=5, size=80))
    config = compose("train", [*TOY, f"data_root={folder / 'data'}"])
    torch.manual_seed(0)
    model = instantiate(config.model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    vocabulary = instantiate(config.dataset, split="train").vocabulary
    checkpoints = Checkpoints(folder / "run" / "checkpoints", config=plain(config))
    checkpoints.save(model, optimizer=optimizer, iteration=3, vocabulary=vocabulary, ema=None)
    return folder / "run"


@pytest.fixture
def toy_overrides(toy_run: Path, tmp_path: Path) -> list[str]:
    """Overrides of an evaluation of that checkpoint into a fresh folder."""
    return [*TOY, f"data_root={toy_run.parent / 'data'}", f"ckpt={toy_run}", f"output={tmp_path / 'out'}"]


@pytest.fixture
def load():
    """Function: name of a tool -> its module."""
    return load_tool
