"""The demo without its page: what strangers type and upload, and what is left on the disk."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import partseg
from partseg.utils.files import scratch_folder
from partseg.vocabulary.words import vocabulary_of_text


@pytest.fixture
def page(root, toy_run, tmp_path):
    """The demo's actions on the tiny checkpoint; downloads go to `downloads/`."""
    spec = importlib.util.spec_from_file_location("tool_demo", root / "partseg" / "commands" / "demo.py")
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool  # dataclasses look their module up by name
    spec.loader.exec_module(tool)
    (tmp_path / "downloads").mkdir()
    segmenter = partseg.load(toy_run, device="cpu")
    return tool.Page(segmenter, max_pixels=10_000, max_parts=3, folder=tmp_path / "downloads")


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    return str(tmp_path / "x.png")


def test_downloads_lie_in_the_one_folder(page, photo, tmp_path):
    html, status, files = page.find_parts(photo, "dog: head, dog's tail", "pred_all", None, "[]")
    assert "partseg-viewer" in html and "write &#x27;tail&#x27;" in status
    assert [Path(file).name for file in files] == ["x.png", "x_labels.png", "x.json"]
    assert all(tmp_path / "downloads" in Path(file).parents for file in files)


def test_a_mask_per_phrase(page, photo):
    """Every line of the field is one; the page says what is wrong with them."""
    html, status, files = page.find_parts(photo, "the dog's ear\n\n front wheel ", "phrases", None, "[]")
    assert "partseg-viewer" in html and "found" in status and len(files) == 3
    written = json.loads(Path(files[2]).read_text())
    assert written["names"] == ["the dog's ear", "front wheel", "background"]
    for text, message in (("", "there are no phrases"), ("a\nb\nc\nd", "These are 4 phrases, allowed are 3")):
        html, status, files = page.find_parts(photo, text, "phrases", None, "[]")
        assert (html, files) == ("", None) and message in status


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dog: a, b, c, d", "These are 4 object-parts, allowed are 3"),
        ("[" * 3000, "too many brackets"),
        ("[&a [x,x], &b [*a,*a]]", "anchor or alias"),
    ],
)
def test_words_that_would_cost_too_much_are_refused(page, photo, words, message):
    html, status, files = page.find_parts(photo, words, "pred_all", None, "[]")
    assert (html, files) == ("", None) and message in status
    if "4" not in message:
        assert page.objects(words) == []


def test_a_result_that_cannot_be_written_is_a_message(page, photo, tmp_path):
    long = tmp_path / f"{'y' * 245}.png"
    Path(photo).rename(long)
    _, status, files = page.find_parts(str(long), "dog: head", "pred_all", None, "[]")
    assert files is None and "File name too long" in status


SERVER = "from partseg.utils.files import scratch_folder; print(scratch_folder('demo'), flush=True); input()"


def test_temporary_files_end_with_their_process_or_the_next_one(tmp_path, monkeypatch, root):
    """Also after kill -9; the folder of a server that runs stays."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
        )
        for _ in range(3)
    ]
    killed, ended, running = servers
    folders = {server: Path(server.stdout.readline().strip()) for server in servers}
    for folder in folders.values():
        (folder / "large.png").write_bytes(b"x")
    try:
        killed.kill()
        killed.wait()
        ended.communicate("\n")
        assert folders[killed].is_dir() and not folders[ended].exists()
        assert scratch_folder("demo").is_dir()
        assert not folders[killed].exists() and (folders[running] / "large.png").exists()
    finally:
        for server in servers:
            server.kill()
            server.communicate()


@pytest.fixture
def clicked(load):
    """Function: marks -> the demo's mask, of a model that sees two dogs (one with a tail) and a wheel."""
    labels = np.full((40, 60), 3)
    labels[5:15, 5:10], labels[5:15, 10:15] = 0, 1
    labels[5:15, 30:40] = 0
    labels[25:35, 5:15] = 2
    predict = lambda image, vocabulary: SimpleNamespace(labels=labels)  # noqa: E731
    segmenter = SimpleNamespace(predict=predict, input=SimpleNamespace(needs_object=False))
    page = load("demo").Page(segmenter, max_pixels=10_000, max_parts=300, folder=Path())
    photo = SimpleNamespace(image=Image.new("RGB", (60, 40)), size=(40, 60))
    words = vocabulary_of_text("dog: head, tail\ncar: wheel")
    return lambda *marks: page._mask(photo, words, json.dumps(marks))


def test_a_click_takes_the_whole_object_under_it_and_no_other(clicked):
    expected = np.zeros((40, 60), bool)
    expected[5:15, 5:15] = True
    assert np.array_equal(clicked({"click": [7 / 60, 10 / 40]}), expected)
    expected[5:15, 30:40] = True
    assert np.array_equal(clicked({"click": [12 / 60, 10 / 40]}, {"click": [35 / 60, 8 / 40]}), expected)


def test_a_click_on_nothing_says_so(clicked):
    with pytest.raises(ValueError, match="sees no object where you clicked; draw around the object"):
        clicked({"click": [0.9, 0.9]})
