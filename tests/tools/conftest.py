"""Tools as modules and command lines on the tiny checkpoint of tests/conftest.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
TOY = ("dataset=toy_pascal_part_116", "model=part_clipseg_tiny", "launch.num_gpus=0", "eval.num_workers=0")


def load_tool(name: str) -> ModuleType:
    """The tool as a module, for tests that call it without starting a process."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy_overrides(toy_run: Path, tmp_path: Path) -> list[str]:
    """Overrides of an evaluation of that checkpoint into a fresh folder."""
    return [*TOY, f"data_root={toy_run.parent / 'data'}", f"ckpt={toy_run}", f"output={tmp_path / 'out'}"]


@pytest.fixture
def load():
    """Function: name of a tool -> its module."""
    return load_tool
