"""Tools as modules and command lines on the tiny checkpoint of tests/conftest.py."""

from pathlib import Path

import pytest

TOY = ("dataset=toy_pascal_part_116", "model=part_clipseg_tiny", "launch.num_gpus=0", "eval.num_workers=0")


@pytest.fixture
def toy_overrides(toy_run: Path, tmp_path: Path) -> list[str]:
    """Overrides of an evaluation of that checkpoint into a fresh folder."""
    return [*TOY, f"data_root={toy_run.parent / 'data'}", f"ckpt={toy_run}", f"output={tmp_path / 'out'}"]
