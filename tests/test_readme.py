"""Every command of the README and CONTRIBUTING names a script that exists and arguments that it accepts."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from partseg.utils import config

ROOT = Path(__file__).parents[1]
CONFIGS = {"train_net": "train", "eval_net": "eval", "benchmark": "benchmark", "score_predictions": "score"}
"""Tools whose arguments are overrides of a config."""


def blocks(language: str) -> list[str]:
    text = "".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    lines += re.findall(r"`((?:python|bash) (?:tools|scripts|datasets)/[^`]+)`", (ROOT / "README.md").read_text())
    lines = [re.sub(r"<[^>]*>", "x", line) for line in lines]  # what the reader fills in
    return [shlex.split(line, comments=True) for line in lines if re.search(r"(tools|scripts|datasets)/\w+\.", line)]


def program(command: list[str]) -> int:
    """Place of the last script in the command: `sbatch scripts/slurm.sh tools/train_net.py`."""
    return max(i for i, word in enumerate(command) if re.fullmatch(r"(tools|scripts|datasets)/\w+\.(py|sh)", word))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"readme_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_commands_are_found():
    assert len(commands()) >= 25
    assert {c[program(c)] for c in commands()} >= {"scripts/quickstart.sh", "tools/train_net.py", "tools/predict.py"}


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_command_is_accepted(command):
    for word in command:
        if re.fullmatch(r"(tools|scripts|datasets)/\w+\.(py|sh)", word):
            assert (ROOT / word).is_file(), word
    path = ROOT / command[program(command)]
    arguments = [word for word in command[program(command) + 1 :] if not word.startswith("...") and word != "-m"]
    if path.suffix == ".sh":
        return
    source = path.read_text()
    if arguments == ["--help"]:
        assert "@cli(" in source or "arguments.run(" in source
    elif path.stem in CONFIGS:
        assert f'@cli("{CONFIGS[path.stem]}"' in source
        first = [re.sub(r"=(\w+)(,\w+)+$", r"=\1", a) for a in arguments if not a.endswith("=...")]  # of a sweep
        config.compose(CONFIGS[path.stem], first)
    else:
        assert {a.partition("=")[0] for a in arguments} <= {
            field.name for field in dataclasses.fields(load(path).Options)
        }


def test_python_examples_use_what_exists():
    import partseg

    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "partseg":
                assert hasattr(partseg, node.attr), node.attr
