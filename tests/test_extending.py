"""docs/extending.md as a user follows it: its files in a foreign folder, its commands as written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from partseg.data import catalog
from partseg.evaluation import results
from partseg.utils import config
from toy_world.writer import ToyOptions, write_toy

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the files that the page names, and the synthetic data."""
    place = tmp_path_factory.mktemp("mine")
    for kind, name, content in re.findall(r"```(python|yaml)\n# (\S+)\n(.*?)```", PAGE.read_text(), re.S):
        assert (kind, Path(name).suffix) in (("python", ".py"), ("yaml", ".yaml"))
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    write_toy(place / "data" / "ToyPascalPart116", ToyOptions(num_train=16, num_val=4, size=64))
    return place


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def run(command: list[str], folder: Path, root: Path) -> str:
    assert command[0] == "python"
    full = [sys.executable, str(root / command[1]), *command[2:]]
    done = subprocess.run(
        full, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_an_example_of_each_kind(folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".py", ".yaml")}
    assert names == {
        "my_losses.py", "my_data.py", "my_system.py", "my_protocol.py",
        "configs/dataset/my_set.yaml", "configs/model/mirrored_tiny.yaml", "configs/evaluator/interior.yaml",
    }  # fmt: skip
    for path in folder.glob("my_*.py"):
        code = [line for line in path.read_text().splitlines() if line.strip() and "import" not in line]
        assert len(code) <= 10, f"{path.name} has {len(code)} lines"


@pytest.mark.slow
@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_works_as_written(command, folder, root):
    run(command, folder, root)
    if "evaluator=interior" in command:
        assert list(results.read(folder / "output" / "my_loss")["protocols"]) == ["interior"]


def test_files_of_the_working_directory_are_choices(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    composed = config.compose("train", ["dataset=my_set", "model=mirrored_tiny", "plugins=[my_data,my_system]"])
    assert composed.eval_dataset._target_ == "my_data.my_set" and composed.model.image_size == 128
    assert len(config.instantiate(composed.dataset, split="train")) == 16
    assert "my_set" in catalog.names()
    config.compose("train", ["experiment=clipseg_my_set", "plugins=[my_data]"])
    with pytest.raises(ValueError, match=r"_target_ 'my_data.my_set' is not allowed.*plugins=\[my_data\]"):
        config.compose("train", ["dataset=my_set"])
    with pytest.raises(ValueError, match=r"'dataset' has no 'my_sets'; did you mean 'my_set'"):
        config.compose("train", ["dataset=my_sets"])


def test_a_folder_called_configs_without_groups_is_not_ours(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "app.yaml").write_text(yaml.safe_dump({"a": 1}))
    monkeypatch.chdir(tmp_path)
    assert config.config_dirs() == (config.config_dir(),)
