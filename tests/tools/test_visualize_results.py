"""The page of an evaluation: complete, in one file, asking nothing of a network."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from partseg.utils import page
from partseg.utils.config import compose


@pytest.fixture
def visualize(load):
    """The tool's main on key=value arguments."""
    tool = load("visualize_results")
    return lambda *arguments: tool.main(tool.arguments.parse(tool.Options, arguments))


@pytest.fixture
def evaluated(load, toy_overrides, tmp_path) -> Path:
    """Folder of an evaluation that kept its predictions."""
    load("eval_net").evaluate(compose("eval", [*toy_overrides, "save_predictions=true"]))
    return tmp_path / "out"


def test_page_holds_everything_and_asks_for_nothing(visualize, evaluated):
    assert visualize(f"run={evaluated}", "images=2") == 0
    html = (evaluated / "report.html").read_text(encoding="utf-8")
    content = json.loads((evaluated / "results.json").read_text())
    num_protocols = len(content["protocols"])
    assert html.count('class="panel card"') == num_protocols * 4, "two worst and two best images per protocol"
    assert html.count('class="partseg-viewer" data-classes=') == num_protocols * 8, (
        "ground truth and prediction of each"
    )
    assert html.count("attention behind each part") > 0
    for name, entry in content["protocols"].items():
        assert f'<h2 id="{name}">' in html
        assert f"<td>{entry['metrics']['mIoU']:.2f}</td>" in html
    assert "Drawn pictures, not photographs" in html
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert "http:" not in html
    assert "https:" not in html


def test_images_come_worst_first(visualize, evaluated):
    pages = []
    for images in (2, 5):
        visualize(f"run={evaluated}", "evaluator=oracle_obj", f"images={images}", "attention=false")
        pages.append((evaluated / "report.html").read_text(encoding="utf-8"))
    some, every = ([float(score) for score in re.findall(r"mean IoU ([0-9.]+), pixels", html)] for html in pages)
    assert len(every) == 5 and every == sorted(every), "nothing twice where all fit"
    assert some == [*every[:2], *every[:-3:-1]]
    assert "attention behind" not in pages[0] and "The objects are given" in pages[0]


def test_a_training_split_is_shown_as_it_was_evaluated(load, visualize, toy_overrides, tmp_path):
    load("eval_net").evaluate(compose("eval", [*toy_overrides, "eval.split=train", "save_predictions=true"]))
    assert visualize(f"run={tmp_path / 'out'}", "images=1", "attention=false") == 0
    assert "pixels" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_mistakes_are_named(visualize, evaluated, tmp_path):
    with pytest.raises(FileNotFoundError, match="run partseg eval again"):
        visualize(f"run={tmp_path}")
    with pytest.raises(ValueError, match="evaluator=oracle was not evaluated; there are"):
        visualize(f"run={evaluated}", "evaluator=oracle")
    shutil.rmtree(evaluated / "predictions")
    with pytest.raises(FileNotFoundError, match="save_predictions=true"):
        visualize(f"run={evaluated}")


def test_confusion_is_shown_within_each_object(load):
    classes = [
        {"object": o, "part": p} for o, p in (("dog", "head"), ("dog", "tail"), ("car", "wheel"), ("cat", "ear"))
    ]
    # truth, prediction, pixels: dog's tail is absent, cat's ear too; id 4 is background
    counts = [[0, 0, 50], [0, 1, 20], [0, 2, 10], [0, 4, 20], [2, 2, 5]]
    html = load("visualize_results").confusion({"classes": classes, "confusion": counts})
    assert html.count("<table") == 2 and "<h3>dog</h3>" in html and "<h3>cat</h3>" not in html
    assert 'title="head as head: 50.0%"' in html and 'title="head as background: 20.0%"' in html
    assert 'title="head as other parts: 30.0%"' in html, "another object's and absent ones of its own"


def test_classes_that_were_never_found_are_listed_not_drawn(load):
    one = {"object": "dog", "num_pixels": 9, "seen": True}
    classes = [one | {"part": part, "iou": iou} for part, iou in (("head", 12.5), ("tail", 0.0), ("leg", None))]
    html = load("visualize_results").class_bars({"classes": [*classes, one | {"part": "ear", "num_pixels": 0}]})
    assert html.count('class="track"') == 1 and "At 0: dog&#x27;s tail, dog&#x27;s leg." in html and "ear" not in html


def test_a_legend_of_many_names_is_folded():
    names = [f"part {i}" for i in range(40)]
    labels = np.arange(40).repeat(10).reshape(20, 20)
    html = page.viewer(np.zeros((20, 20, 3), np.uint8), labels, names)
    shown, rest = html.split("<details>")
    assert shown.count("<button") == page.MOST_NAMES and f"{40 - page.MOST_NAMES} more" in rest
    assert rest.count("<button") == 40 - page.MOST_NAMES
    assert "<details>" not in page.viewer(np.zeros((20, 20, 3), np.uint8), labels % (page.MOST_NAMES + 1), names)


def test_small_parts_and_training_curves_are_shown(load, tmp_path):
    tool = load("visualize_results")
    one = tool.Scored(0, "a", 50.0, 60.0, parts=((0.02, 0.25), (0.03, 0.75), (0.5, 1.0)))
    html = tool.by_size([one, tool.Scored(1, "b", 0.0, 0.0, parts=((0.5, 0.0),))])
    assert "1-3 % (2)" in html and "10-100 % (2)" in html and html.count("50.0</span>") == 2
    assert tool.training(tmp_path) == ""
    records = [{"iteration": i, "train/loss": 1 / i} for i in (1, 2)]
    records += [{"iteration": i, "oracle_obj/mIoU": 10.0 * i, "oracle_obj/pACC": 1.0} for i in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    html = tool.training(tmp_path)
    assert html.count("<polyline") == 2 and "oracle_obj/mIoU 20" in html and "pACC" not in html
    assert 'points="0.0,0.0 600.0,200.0"' in html, "the loss falls from the upper left to the lower right"


def test_runs_are_compared_image_by_image(load, evaluated, tmp_path):
    tool = load("compare_runs")
    other = shutil.copytree(evaluated, tmp_path / "other")
    for path in (other / "predictions").rglob("*.png"):
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 65535)).save(path)
    out = tmp_path / "compare.html"
    options = tool.Options(f"{evaluated},{other}", images=2, output=out)
    assert tool.main(options) == 0
    html = out.read_text(encoding="utf-8")
    assert html.count('class="panel card"') == 2 and html.count('class="partseg-viewer" data-classes=') == 6
    assert "out: mean IoU" in html and "other: mean IoU 0.0" in html and "Drawn pictures" in html
    paths = [tmp_path / name / "seed1" for name in ("clip", "cat")]
    assert tool.called(paths) == {paths[0]: "clip/seed1", paths[1]: "cat/seed1"}, "seed1 alone would be both"
    for one in (f"{evaluated}", f"{evaluated},{evaluated}"):
        with pytest.raises(ValueError, match="names 1 run; give two"):
            tool.main(tool.Options(one))
    content = json.loads((other / "results.json").read_text())
    content["dataset"]["manifest_hash"] = "x"
    (other / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="evaluated on other images"):
        tool.main(options)
