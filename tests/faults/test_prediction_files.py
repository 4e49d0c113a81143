"""Prediction and the files around it: no input is lost, no result replaces another, and mistakes cost one line."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import partseg
from partseg.data import io
from partseg.data.images import list_images, read_mask, read_photo, unique_stems
from partseg.evaluation.predictions import read_prediction
from partseg.structures import Sample

WORDS = "vocabulary={dog: [head, tail], car: wheel}"


@pytest.fixture
def predict(load, toy_run):
    """Function: key=value arguments -> exit code of tools/predict.py on the tiny checkpoint."""
    tool = load("predict")
    always = [f"ckpt={toy_run}", "device=cpu", WORDS]
    return lambda *arguments: tool.main(tool.arguments.parse(tool.Options, [*always, *arguments]))


@pytest.fixture
def photo(tmp_path):
    """Function: name, height -> a photo of 60 columns in the temporary folder."""

    def write(name, height=40):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(height).integers(0, 255, (height, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("output", ["photos", "PHOTOS/../photos", "link", "masks"])
def test_results_never_go_where_photos_or_masks_are_read_from(predict, photo, tmp_path, output):
    photo("photos/x.png")
    photo("masks/x.png")
    (tmp_path / "PHOTOS").mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "x.png").symlink_to(tmp_path / "photos" / "x.png")
    before = content(tmp_path)
    oracle = ("protocol=oracle_obj", "object=dog", f"masks={tmp_path / 'masks'}")
    with pytest.raises(ValueError, match="is a folder that photos or masks are read from; choose another folder"):
        predict(f"input={tmp_path / 'given'}", f"output={tmp_path / output}", *oracle)
    assert content(tmp_path) == before


def test_results_of_different_photos_never_meet(predict, photo, tmp_path):
    """Each file of labels has the size of its own photo, which no other photo has."""
    names = ["a/x.jpg", "a/x_labels.png", "a/x_attention.png", "a/X.png", "b/x.jpg", "a/segments.json.png"]
    heights = {str(photo(name, height)): height for height, name in enumerate(names, 20)}
    out = tmp_path / "out"
    assert predict(f"input={tmp_path / 'a'}", f"input={tmp_path / 'b'}", f"output={out}", "attention=true") == 0
    shapes = [np.asarray(read_photo(path).image).shape for path in out.glob("*_labels*.png")]
    assert sorted(height for height, width, _ in shapes if width == 60) == sorted(heights.values())
    names = [path.name.lower() for path in out.iterdir()]
    assert len(names) == len(set(names)) > 2 * len(heights)
    images = json.loads((out / "segments.json").read_text())["images"]
    assert {image["file_name"]: image["height"] for image in images} == heights


def test_names_that_some_file_system_holds_for_one():
    paths = [
        Path("a/stra\N{LATIN SMALL LETTER SHARP S}e.png"),
        Path("b/STRASSE.png"),
        Path("c/e\u0301.png"),
        Path("d/\u00e9.png"),
    ]
    names = unique_stems([*paths, Path("segments.json")], endings=(".json",), taken=["segments.json.json"])
    assert list(names.values()) == [paths[0].stem, "STRASSE_png", paths[2].stem, "\u00e9_png", "segments"]
    assert unique_stems([Path("segments.png")], endings=(".json",), taken=["segments.json"]) == {
        Path("segments.png"): "segments_png"
    }


def test_files_of_others_in_the_output_folder_stay(predict, photo, tmp_path):
    """A folder of our own results is written again, one that holds anything in the way is not."""
    source, out = photo("photos/x.jpg"), tmp_path / "out"
    kept = photo("out/x.png")
    before = content(out)
    with pytest.raises(ValueError, match=r"holds x\.png, which this tool did not write and would replace"):
        predict(f"input={source}", f"output={out}")
    assert content(out) == before
    kept.rename(out / "unrelated.png")
    for _ in range(2):
        assert predict(f"input={source}", f"output={out}") == 0
    (out / "segments.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match=r"holds segments\.json"):
        predict(f"input={source}", f"output={out}")


def test_a_result_that_cannot_be_written_is_listed(predict, photo, tmp_path, capsys):
    for name in ("a", "b" * 245, "c"):
        photo(f"photos/{name}.png")
    assert predict(f"input={tmp_path / 'photos'}", f"output={tmp_path / 'out'}") == 1
    said = capsys.readouterr().out
    assert "2 photos in" in said and "failed: cannot write the results of" in said and "File name too long" in said
    images = json.loads((tmp_path / "out" / "segments.json").read_text())["images"]
    assert [Path(image["file_name"]).stem for image in images] == ["a", "c"]


def test_an_output_that_cannot_be_written_to_costs_no_work(predict, photo, tmp_path):
    (tmp_path / "file").write_text("precious")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="cannot be written to: .*; choose another folder"):
            predict(f"input={photo('photos/x.png')}", f"output={output}")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["protocol=oracle_obj", "object=dgo"], "object 'dgo' is not in the vocabulary; it has"),
        (["object=dog"], "an object is only used by protocol='oracle_obj'"),
        (["protocol=oracle_obj", "object=dog", "masks={tmp}/nowhere"], "nowhere is no folder"),
        (["protocol=oracle_obj", "object=dog", "masks={tmp}/photos"], "holds the photos themselves"),
        (["protocol=oracle_obj", "object=dog", "masks={tmp}/masks", "input={tmp}/more"], "would share one mask"),
        (["max_side=0"], "max_side=0 must be at least 1"),
        (["device=banana"], "device=banana cannot be used"),
    ],
)
def test_mistakes_of_the_whole_job_are_refused_before_it(predict, photo, tmp_path, arguments, message):
    photo("photos/x.png")
    photo("more/x.jpg")
    (tmp_path / "masks").mkdir()
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predict(f"input={tmp_path / 'photos'}", f"output={tmp_path / 'out'}", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_photo_without_its_mask_is_named_as_that(predict, photo, tmp_path, capsys):
    for name in ("photos/x.jpg", "photos/y.jpg", "masks/x.png"):
        photo(name)
    oracle = ("protocol=oracle_obj", "object=dog", f"masks={tmp_path / 'masks'}")
    assert predict(f"input={tmp_path / 'photos'}", f"output={tmp_path / 'out'}", *oracle) == 1
    assert f"failed: y has no mask {tmp_path / 'masks' / 'y.png'}" in capsys.readouterr().out


def test_file_names_that_are_no_unicode_or_hold_anything(predict, photo, tmp_path):
    """Old archives have such names; their bytes come back from segments.json."""
    names = [os.fsdecode(b"caf\xe9.png"), "two\nlines.png", "[red]dog.png", "\N{DOG FACE}.png", "-x.png"]
    for name in names:
        photo(f"photos/{name}")
    out = tmp_path / "out"
    assert predict(f"input={tmp_path / 'photos'}", f"output={out}") == 0
    images = json.loads((out / "segments.json").read_text(encoding="utf-8"))["images"]
    assert {os.fsencode(Path(image["file_name"]).name) for image in images} == {os.fsencode(name) for name in names}
    assert len(list(out.glob("*_labels.png"))) == len(names)


def test_names_that_the_terminal_lacks_end_no_job(load, toy_run, photo, monkeypatch, tmp_path):
    tool = load("predict")
    photo("photos/\N{DOG FACE}.png").write_text("no picture")
    arguments = [f"ckpt={toy_run}", f"input={tmp_path / 'photos'}", f"output={tmp_path / 'out'}", "device=cpu"]
    with (tmp_path / "terminal").open("w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
        assert tool.arguments.run(tool.main, tool.Options, "") == 1
    assert r"\U0001f436.png is not an image" in (tmp_path / "terminal").read_text(encoding="ascii")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", [read_photo, io.read_image, read_mask, lambda path: io.read_label(path, bits=8)])
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "x.png")
    for path in (tmp_path / "x.png", Path("/dev/zero")):
        with pytest.raises(ValueError, match="is a pipe or device, not a picture file"):
            read(path)


def test_links_that_go_round_give_each_photo_once(photo, tmp_path):
    photo("photos/deep/x.png")
    (tmp_path / "photos" / "deep" / "round").symlink_to(tmp_path / "photos")
    assert [path.name for path in list_images(f"{tmp_path}/photos/**/*.png")[0]] == ["x.png"]
    assert len(list_images([tmp_path / "photos" / "deep", f"{tmp_path}/photos/deep/../deep/x.png"])[0]) == 1


def test_a_link_to_nothing_is_listed(predict, photo, tmp_path, capsys):
    photo("photos/x.png")
    (tmp_path / "photos" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert predict(f"input={tmp_path / 'photos'}", f"output={tmp_path / 'out'}") == 1
    assert "gone.png" in capsys.readouterr().out


def test_saving_a_prediction_never_replaces_its_photo(toy_run, photo, tmp_path):
    path = photo("x.png")
    before = content(tmp_path)
    prediction = partseg.load(toy_run, device="cpu").predict(path, {"dog": ["head"]})
    with pytest.raises(ValueError, match=r"would replace the photo .*x\.png; give another folder, or stem="):
        prediction.save(tmp_path)
    assert content(tmp_path) == before
    assert all(file.is_file() for file in prediction.save(tmp_path, stem="y"))


def test_attention_maps_do_not_replace_the_photo(load, photo):
    path = photo("x.png")
    tool = load("attention_maps")
    with pytest.raises(ValueError, match="is one of the photos; choose another file"):
        tool.main(tool.arguments.parse(tool.Options, ["ckpt=run", f"image=y.png,{path}", f"out={path}"]))


def test_masks_of_every_kind_say_the_same(tmp_path):
    """A 16-bit file of ids, a drawing on nothing, and one stored on its side."""
    inside = np.array([[False, True, True]])
    ids = Image.fromarray(inside.astype(np.uint16))
    drawing = Image.new("RGBA", (3, 1))
    drawing.paste((255, 255, 255, 255), (1, 0, 3, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    ids.save(tmp_path / "ids.png")
    drawing.save(tmp_path / "drawing.png")
    Image.fromarray(inside.T[::-1].astype(np.uint8)).save(tmp_path / "side.png", exif=exif)
    for name in ("ids", "drawing", "side"):
        assert np.array_equal(read_mask(tmp_path / f"{name}.png"), inside), name


def test_photos_without_pixels_are_refused():
    with pytest.raises(ValueError, match="has no pixels, it is 0 x 5"):
        read_photo(Image.new("RGB", (0, 5)))


def test_a_missing_prediction_names_the_folder_of_predictions(tmp_path):
    sample = Sample(None, np.zeros((2, 2)), None, name="2008_000001", file_name="images/2008_000001.jpg")
    with pytest.raises(FileNotFoundError, match=rf"no prediction .*2008_000001\.png.*predictions={tmp_path} must hold"):
        read_prediction(tmp_path, sample, 3)
