"""The smallest runs of the tools, in this process or in a forked one that a test may kill."""

import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
import torch

from toy_world.writer import ToyOptions, write_toy

ROOT = Path(__file__).parents[2]
COSTS = ("train/seconds_per_step", "train/images_per_second", "train/data_share", "train/memory_gib")


@pytest.fixture(scope="session")
def tools() -> Callable[[str], ModuleType]:
    """Function: name of a tool -> its module, imported once."""
    loaded: dict[str, ModuleType] = {}

    def load(name: str) -> ModuleType:
        if name not in loaded:
            command = ROOT / "partseg" / "commands" / f"{name}.py"
            path = command if command.is_file() else ROOT / "tools" / command.name
            spec = importlib.util.spec_from_file_location(f"faults_{name}", path)
            loaded[name] = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded[name])
        return loaded[name]

    return load


@pytest.fixture
def train_net(tools) -> ModuleType:
    """tools/train_net.py."""
    return tools("train_net")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """A few synthetic images in the layout of Pascal-Part-116."""
    folder = tmp_path_factory.mktemp("data")
    write_toy(folder / "ToyPascalPart116", ToyOptions(num_train=8, num_val=4, size=64))
    return folder


@pytest.fixture(scope="session")
def overrides(data_root) -> Callable[[Path], list[str]]:
    """Function: folder -> overrides of a run of six steps in `folder/run`; every two a checkpoint and an evaluation."""
    return lambda folder: [
        "debug=smoke", f"data_root={data_root}", f"output_root={folder}", "name=run", "launch.num_gpus=0",
        "model.image_size=64", "model.train_text_embeddings=false", "evaluator=oracle_obj",
        "best.metrics=[oracle_obj/mIoU]", "train.batch_size=2", "train.iterations=6", "train.ema_decay=0.5",
        "optimizer.lr=1e-2", "hooks.log.every=1", "hooks.checkpoint.every=2", "hooks.evaluate.every=2",
        "hooks.visualize.every=2", "hooks.visualize.num_images=1",
    ]  # fmt: skip


@pytest.fixture
def settings(overrides, tmp_path) -> list[str]:
    """The overrides for `tmp_path/run`."""
    return overrides(tmp_path)


class Program:
    """A command in a forked process: `main` sees the command line, `output` is what it wrote to the terminal."""

    def __init__(self, main: Callable[[], object], arguments: list[str], output: Path) -> None:
        self.path = output
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=self._work, args=(main, arguments))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns about forks of threaded processes
            self.process.start()

    def _work(self, main: Callable[[], object], arguments: list[str]) -> None:
        with self.path.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        sys.argv = ["tool.py", *arguments]
        torch.set_num_threads(1)  # makes the fork safe, as in data workers
        main()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens where the process has ended by itself."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self) -> int:
        """Exit code, negative for a signal."""
        self.process.join(120)
        if self.process.exitcode is None:
            self.process.kill()
            pytest.fail(f"did not end: {self.output}")
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.path.read_text()


@pytest.fixture
def start(tmp_path):
    """Function: (main, arguments) -> a started Program, which ends with the test."""
    started: list[Program] = []

    def begin(main: Callable[[], object], arguments: list[str]) -> Program:
        started.append(Program(main, arguments, tmp_path / f"terminal_{len(started)}.txt"))
        return started[-1]

    yield begin
    for program in started:
        program.process.kill()
        program.process.join()


@pytest.fixture
def records() -> Callable[[Path], list[dict]]:
    """Function: run directory -> metrics.jsonl without what a clock measured."""

    def read(directory: Path) -> list[dict]:
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in COSTS} for line in lines]

    return read


@pytest.fixture
def state_of(records) -> Callable[[Path], dict[str, object]]:
    """Function: run directory -> everything in it that must not depend on how often the run was stopped."""

    def read(directory: Path) -> dict[str, object]:
        folder = directory / "checkpoints"
        found: dict[str, object] = {
            "records": records(directory),
            "best": json.loads((folder / "best.json").read_text()),
        }
        for path in folder.glob("*.pt"):
            found[path.name] = (
                str(path.readlink()) if path.is_symlink() else _leaves(torch.load(path, weights_only=True))
            )
        names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
        return {**found, "names": names}

    return read


def _leaves(node: object, key: str = "") -> dict[str, object]:
    """Key -> value of everything in a checkpoint, tensors as bytes; the path of the run is left out."""
    if isinstance(node, dict):
        inner = [_leaves(value, f"{key}/{name}") for name, value in node.items() if name not in ("name", "output_root")]
        return {k: v for leaves in inner for k, v in leaves.items()}
    if isinstance(node, torch.Tensor):
        node = (node.dtype, node.shape, node.cpu().contiguous().numpy().tobytes())
    return {key: node}


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Function: waits until a condition holds."""

    def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.002)

    return wait


@pytest.fixture
def patch_in(monkeypatch):
    """Function: (owner, name, action) -> before or after each call of owner.name, `action` gets its arguments."""

    def patch(
        owner: object,
        name: str,
        action: Callable[..., None],
        *,
        after: bool = False,
        monkeypatch: pytest.MonkeyPatch = monkeypatch,
    ) -> None:
        original = getattr(owner, name)

        def replaced(*args: object, **kwargs: object) -> object:
            if not after:
                action(*args, **kwargs)
            result = original(*args, **kwargs)
            if after:
                action(*args, **kwargs)
            return result

        monkeypatch.setattr(owner, name, replaced)

    return patch
