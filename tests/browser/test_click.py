"""Oracle-Obj by a click: the object is the region that the model sees there, and nothing else of the same name."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from partseg.vocabulary.words import vocabulary_of_text

pytestmark = pytest.mark.browser

TOOL = Path(__file__).parents[2] / "partseg" / "commands" / "demo.py"


@pytest.fixture
def demo_page(tmp_path):
    """The demo's actions over a model that sees two dogs (head and tail of the first) and a wheel."""
    pytest.importorskip("gradio", reason="the demo extra is not installed")
    spec = importlib.util.spec_from_file_location("tool_demo", TOOL)
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool
    spec.loader.exec_module(tool)
    labels = np.full((40, 60), 3)
    labels[5:15, 5:10], labels[5:15, 10:15] = 0, 1
    labels[5:15, 30:40] = 0
    labels[25:35, 5:15] = 2
    segmenter = SimpleNamespace(predict=lambda image, vocabulary: SimpleNamespace(labels=labels))
    return tool.Page(segmenter, max_pixels=10_000, max_parts=300, folder=tmp_path)


def mask_of(demo_page, *marks):
    vocabulary = vocabulary_of_text("dog: head, tail\ncar: wheel")
    photo = SimpleNamespace(image=Image.new("RGB", (60, 40)), size=(40, 60))
    return demo_page._mask(photo, vocabulary, json.dumps(marks))


def test_a_click_takes_the_whole_object_under_it_and_no_other(demo_page):
    expected = np.zeros((40, 60), bool)
    expected[5:15, 5:15] = True
    assert np.array_equal(mask_of(demo_page, {"click": [7 / 60, 10 / 40]}), expected)
    expected[5:15, 30:40] = True
    both = mask_of(demo_page, {"click": [12 / 60, 10 / 40]}, {"click": [35 / 60, 8 / 40]})
    assert np.array_equal(both, expected)


def test_a_click_on_nothing_says_so(demo_page):
    with pytest.raises(ValueError, match="sees no object where you clicked; draw around the object"):
        mask_of(demo_page, {"click": [0.9, 0.9]})
