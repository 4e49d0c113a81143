"""Fixtures every test may use."""

import importlib
import importlib.util
import logging
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from partseg.engine.checkpoint import Checkpoints
from partseg.engine.run import plain
from partseg.engine.writers import LOG
from partseg.utils.config import compose, instantiate
from toy_world.writer import ToyOptions, write_toy

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT.parent / "shared" / "samples"
TOY = ("dataset=toy_pascal_part_116", "model=part_clipseg_tiny", "launch.num_gpus=0", "eval.num_workers=0")

# A process whose first backward pass comes after a FakeTensor was made cannot be forked any more (torch then starts
# threads for it); many tests fork, so the first one is now.
torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed():
    """Two threads at most and a fixed seed, so that a test means the same on every machine."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_closed_afterwards():
    """A command that a test calls starts the log of its process, which is that of the next test."""
    yield
    for handler in list(LOG.handlers):
        LOG.removeHandler(handler)
        handler.close()
    LOG.propagate = True
    LOG.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True, scope="session")
def _processes_as_installed():
    """Processes that tests start see the packages a user has, see as_installed/sitecustomize.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).with_name("as_installed")), prepend=os.pathsep)
        yield


@pytest.fixture
def processes_with_extras(monkeypatch):
    """Processes that a test starts see transformers, too, which OPS needs."""
    pytest.importorskip("transformers", reason="OPS needs transformers (pip install transformers)")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def samples() -> Path:
    """Real sample files that are not part of the project; tests that need them skip where they are absent."""
    if not SAMPLES.is_dir():
        pytest.skip(f"real sample files are not beside the checkout ({SAMPLES.relative_to(ROOT.parent)})")
    return SAMPLES


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of an untrained tiny model, as training leaves it; its synthetic data lies in `data/` beside it."""
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


class Forked:
    """Functions in forked processes of one Gloo group each, which spare the seconds that importing torch takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.groups = 0

    def __call__(self, function: Callable[[], object], *, processes: int = 1) -> list[int]:
        """Exit codes of the processes that ran it."""
        started = self.start(function, processes=processes)
        for process in started:
            process.join(120)
        return [process.exitcode for process in started]

    def start(self, function: Callable[[], object], *, processes: int) -> list[multiprocessing.Process]:
        """The processes, which may be killed."""
        self.groups += 1
        store = self.folder / str(self.groups)
        context = multiprocessing.get_context("fork")
        started = [context.Process(target=_in_group, args=(function, i, processes, store)) for i in range(processes)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns about forks of threaded processes
            for process in started:
                process.start()
        return started


def _in_group(function: Callable[[], object], rank: int, count: int, store: Path) -> None:
    torch.set_num_threads(1)  # makes the fork safe, as in data workers
    if count > 1:
        files = torch.distributed.FileStore(str(store), count)
        torch.distributed.init_process_group("gloo", store=files, rank=rank, world_size=count)
    function()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Forked:
    """Runs `function()` in `processes` forked processes of one group and returns their exit codes."""
    return Forked(tmp_path_factory.mktemp("groups"))


def load_tool(name: str) -> ModuleType:
    """The tool, or the command behind it, as a module, for tests that call it without starting a process."""
    if (ROOT / "partseg" / "commands" / f"{name}.py").is_file():
        return importlib.import_module(f"partseg.commands.{name}")
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def load():
    """Function: name of a tool -> its module."""
    return load_tool
