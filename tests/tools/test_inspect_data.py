"""The inspector as a user runs it: exit codes, table, json and sheet."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from partseg.utils.arguments import parse

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "inspect_data.py"


@pytest.fixture
def tool(load) -> ModuleType:
    return load("inspect_data")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two images per split in the Pascal layout."""
    root = tmp_path / "spare part" / "ToyPascalPart116"
    label = np.full((30, 40), 255, np.uint8)
    for split in ("train", "val"):
        for stem in ("a", "b"):
            for folder, picture in (
                ("images", Image.new("RGB", (40, 30))),
                ("annotations_detectron2_part", Image.fromarray(label)),
                ("annotations_detectron2_obj", Image.fromarray(label)),
            ):
                path = root / folder / split / f"{stem}.{'jpg' if folder == 'images' else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    return root


def test_subprocess_writes_json_and_sheet_and_ends_with_one(samples: Path, tmp_path: Path):
    command = [sys.executable, str(TOOL), "dataset=pascal_part_116", "split=val", "processes=1"]
    root = samples / "ov_parts/derived/PascalPart116"
    paths = [f"json={tmp_path}/out/report.json", f"sheet={tmp_path}/out/sheet.png"]
    done = subprocess.run([*command, f"root={root}", *paths], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr, done.stderr
    assert "2 images, published 850" in done.stdout and "cow's head" in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["changes_score"] and report["splits"]["val"]["object_parts"]["person's head"]["images"] == 1
    with Image.open(tmp_path / "out/sheet.png") as sheet:
        assert sheet.width > 1000


def test_exit_code_zero_when_nothing_changes_a_score(tool: ModuleType, data: Path, capsys: pytest.CaptureFixture):
    arguments = ["dataset=toy_pascal_part_116", f"root={data}", "processes=1", "classes=false"]
    assert tool.main(parse(tool.Options, arguments)) == 0
    assert "Nothing found that would change a score" in capsys.readouterr().out
    (data / "images/val/a.jpg").unlink()
    assert tool.main(parse(tool.Options, arguments)) == 1
    assert "part label without image" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["root=x"], r"missing arguments: dataset=\.\.\."),
        (["dataset=pascal_part_116", "rot=x"], "there is no argument 'rot'; did you mean 'root'"),
        (["dataset=pascal_part_116", "split=test"], "split=test is not one of train, val"),
        (["dataset=pascal_part_116", "processes=0"], "images=16 and processes=0 must be 1 or more"),
        (["dataset=pascal_part_116", "classes=maybe"], "classes=maybe: "),
    ],
)
def test_wrong_arguments(tool: ModuleType, arguments: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        tool.main(parse(tool.Options, arguments))
