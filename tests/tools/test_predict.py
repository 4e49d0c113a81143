"""tools/predict.py as a user runs it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

TOOL = Path(__file__).parents[2] / "tools" / "predict.py"
WORDS = "vocabulary={dog: [head, tail], car: wheel}"


@pytest.fixture
def photos(tmp_path):
    """Three frames, a file that only claims to be a picture, and one that claims nothing."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in (10, 9, 1):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / f"frame_{number}.png")
    (folder / "broken.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("hello")
    return folder


@pytest.fixture
def predict(load):
    """The tool's main on key=value arguments."""
    tool = load("predict")
    return lambda *arguments: tool.main(tool.arguments.parse(tool.Options, arguments))


def test_command_line(toy_run, photos, tmp_path):
    """A folder with a broken file: the rest is done, the failure is named, the exit code says so."""
    out = tmp_path / "out"
    command = [sys.executable, str(TOOL), f"ckpt={toy_run}", f"input={photos}", WORDS, f"output={out}", "device=cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "3 photos in" in done.stdout
    assert "1 files are no images and are left out: notes.txt" in done.stdout
    assert "failed:" in done.stdout
    assert "broken.jpg is not an image that Pillow reads" in done.stdout
    written = sorted(p.name for p in out.iterdir())
    assert written == sorted(
        ["segments.json", *(f"frame_{n}{end}" for n in (1, 9, 10) for end in (".png", "_labels.png"))]
    )


def test_segments_are_a_coco_file_in_frame_order(predict, toy_run, photos, tmp_path):
    out = tmp_path / "out"
    code = predict(f"ckpt={toy_run}", f"input={photos}/frame_*.png", WORDS, f"output={out}", "scores=true")
    assert code == 0
    coco = COCO(str(out / "segments.json"))
    assert [Path(i["file_name"]).name for i in coco.loadImgs(coco.getImgIds())] == [
        "frame_1.png",
        "frame_9.png",
        "frame_10.png",
    ]
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == [
        *("dog's head", "dog's tail", "car's wheel"),
        *("dog", "car"),
    ]
    for number, name in enumerate(("frame_1", "frame_9", "frame_10"), 1):
        with Image.open(out / f"{name}_labels.png") as file:
            labels = np.asarray(file)
        painted = np.full(labels.shape, 65535)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[number])):
            painted[coco.annToMask(annotation) > 0] = annotation["category_id"] - 1
            assert 0 < annotation["score"] < 1
        assert np.array_equal(painted, labels)


def test_oracle_with_masks_and_attention(predict, toy_run, photos, tmp_path):
    masks, out = tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    Image.fromarray(mask).save(masks / "frame_9.png")
    code = predict(
        *(f"ckpt={toy_run}", f"input={photos}/frame_9.png", WORDS, f"output={out}", "overlays=false"),
        *("protocol=oracle_obj", "object=dog", f"masks={masks}", "attention=true"),
    )
    assert code == 0
    with Image.open(out / "frame_9_labels.png") as file:
        assert np.array_equal(np.asarray(file) != 65535, mask)
    assert sorted(p.name for p in out.iterdir()) == ["frame_9_attention.png", "frame_9_labels.png", "segments.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inputs=x"], "no argument 'inputs'; did you mean 'input'?"),
        (["input=x"], "missing arguments: ckpt=..."),
        (["x"], "missing arguments: input=..."),  # a word alone is the first key's
        (["ckpt=x", "input=nowhere"], "no file, folder or pattern nowhere"),
        (
            ["ckpt=x", "input=.", "batch_size=many"],
            "batch_size=many: Value 'many' of type 'str' could not be converted to Integer",
        ),
        (["ckpt=x", "input=.", "labels=maybe"], "labels=maybe: Value 'maybe' is not a valid bool"),
    ],
)
def test_mistakes_are_named(predict, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        predict(*arguments)
    assert message in str(error.value)


def test_help_is_the_docstring(load, monkeypatch, capsys):
    tool = load("predict")
    monkeypatch.setattr(sys, "argv", ["predict.py", "--help"])
    assert tool.arguments.run(tool.main, tool.Options, tool.__doc__) == 0
    assert capsys.readouterr().out.strip() == tool.__doc__.strip()
