"""The attention tool as a user runs it: two checkpoints side by side on data and on a photo."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.engine.checkpoint import Checkpoints
from partseg.engine.run import plain
from partseg.utils.arguments import parse
from partseg.utils.config import compose, instantiate
from partseg.vocabulary.names import Vocabulary
from toy_world.writer import ToyOptions, write_toy

TOOL = Path(__file__).parents[2] / "tools" / "attention_maps.py"


@pytest.fixture
def tool(load) -> ModuleType:
    return load("attention_maps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories `before` and `after` of untrained networks, and three toy images in `data`."""
    folder = tmp_path_factory.mktemp("attention maps")
    write_toy(folder / "data" / "ToyPascalPart116", ToyOptions(num_train=1, num_val=2, size=64))
    config = compose("train", ["model=part_clipseg_tiny"])
    vocabulary = Vocabulary.from_mapping({"dog": ["head", "tail"], "car": ["wheel"]})
    for seed, name in enumerate(("before", "after")):
        torch.manual_seed(seed)
        model = instantiate(config.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        checkpoints = Checkpoints(folder / name / "checkpoints", config=plain(config))
        checkpoints.save(model, optimizer=optimizer, iteration=1, vocabulary=vocabulary, ema=None)
    return folder


def test_two_checkpoints_on_a_data_set(folder):
    out = folder / "compared.png"
    runs = f"ckpt={folder}/before,{folder}/after/"
    command = [sys.executable, str(TOOL), runs, "dataset=toy_pascal_part_116", f"data_root={folder}/data"]
    done = subprocess.run([*command, "index=0,1", f"out={out}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0].split()[-1] for line in lines[:-1]] == ["before", "after"]
    assert lines[-1] == str(out)
    with Image.open(out) as sheet:
        assert np.asarray(sheet).std() > 10


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_are_those_of_the_whole_photo(tool, folder, split):
    """... in training too, where samples are cut and flipped otherwise."""
    arguments = ["ckpt=a", "dataset=toy_pascal_part_116", f"data_root={folder}/data", f"split={split}", "index=0"]
    (shown,) = tool.pictures_of_dataset(parse(tool.Options, arguments))
    assert shown.picture.size == (64, 64) and shown.object_part.shape == shown.object.shape == (64, 64)


def test_photos_take_the_parts_that_the_first_checkpoint_finds(tool, folder, capsys):
    photo = next((folder / "data").rglob("images/val/*.jpg"))
    out = folder / "photo.png"
    tool.main(parse(tool.Options, [f"ckpt={folder}/before", f"image={photo}", "words=dog: head, tail", f"out={out}"]))
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    with Image.open(out) as sheet:
        assert sheet.width < 3 * 240


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ckpt="),
        (["ckpt=a"], "dataset=<name> or image=<photo>"),
        (["ckpt=a", "dataset=b", "image=c"], "dataset=<name> or image=<photo>"),
        (["ckpt=a", "datset=b"], "datset"),
    ],
)
def test_wrong_arguments_are_named(tool, arguments, message):
    with pytest.raises(ValueError, match=message):
        tool.main(parse(tool.Options, arguments))


def test_images_and_parts_that_are_not_there(tool, folder):
    common = [f"ckpt={folder}/before", "dataset=toy_pascal_part_116", f"data_root={folder}/data"]
    with pytest.raises(ValueError, match="has images 0 to 1"):
        tool.main(parse(tool.Options, [*common, "index=7"]))
    with pytest.raises(ValueError, match="none of the pictures"):
        tool.main(parse(tool.Options, [*common, "index=0", "parts=flipper"]))
