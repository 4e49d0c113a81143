"""The demo in a real browser: what a visitor does, and what goes wrong for them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import partseg

pytestmark = pytest.mark.browser

WORDS = "dog: head, tail\ncar: wheel"


@pytest.fixture
def page(browser_page, demo):
    """The demo, freshly loaded."""
    browser_page.goto(demo)
    browser_page.wait_for_selector("#go")
    return browser_page


def upload(page, path: Path) -> None:
    page.set_input_files("#upload input[type=file]", str(path))


def find(page, words: str = WORDS) -> None:
    """Press the button and wait for the picture."""
    page.fill("#words textarea", words)
    page.click("#go")
    page.wait_for_selector("#result .partseg-viewer[data-painted]")


def problem(page) -> str:
    """Press the button and wait for the message."""
    page.click("#go")
    return page.wait_for_selector("#status .bad").inner_text()


def download(page, kind: str, folder: Path) -> Path:
    page.wait_for_selector(f"#download-{kind}:not([disabled])")
    with page.expect_download() as started:
        page.click(f"#download-{kind}")
    started.value.save_as(folder / started.value.suggested_filename)
    return folder / started.value.suggested_filename


def test_upload_words_picture_hover_download(page, photo, toy_run, tmp_path, screenshots):
    upload(page, photo)
    shown = page.wait_for_selector(".partseg-marker[data-ready] img")
    assert shown.evaluate("e => [e.naturalWidth, e.naturalHeight]") == [320, 240], "the orientation tag is applied"
    find(page)
    expected = partseg.load(toy_run, device="cpu").predict(photo, WORDS)

    with Image.open(download(page, "labels", tmp_path)) as file:
        labels = np.asarray(file)
    assert np.array_equal(np.where(labels == 65535, 3, labels), expected.labels)
    with Image.open(download(page, "picture", tmp_path)) as file:
        assert file.size[0] > 320
    content = json.loads(download(page, "json", tmp_path).read_text(encoding="utf-8"))
    assert [s["name"] for s in content["segments"]] == [s.name for s in expected.segments]

    box = page.query_selector("#result .stage").bounding_box()
    for y, x in ((20, 30), (120, 160), (200, 290)):
        page.mouse.move(box["x"] + (x + 0.5) * box["width"] / 320, box["y"] + (y + 0.5) * box["height"] / 240)
        assert page.inner_text("#result .tip") == expected.names[expected.labels[y, x]]
    page.screenshot(path=screenshots / "result.png", full_page=True)
    names = page.eval_on_selector_all(
        "#result .legend button", "all => all.map(b => b.childNodes[1].textContent.trim())"
    )
    assert names == [segment.name for segment in expected.segments]


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_wider_than_the_screen(page, photo, screenshots, width):
    page.set_viewport_size({"width": width, "height": 900})
    upload(page, photo)
    page.wait_for_selector(".partseg-marker[data-ready]")
    find(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.wait_for_function("() => document.querySelector('#result').getBoundingClientRect().top < innerHeight / 2")
    page.screenshot(path=screenshots / f"demo_{width}.png", full_page=True)


def test_the_last_result_stays_beside_a_mistake(page, photo):
    upload(page, photo)
    page.wait_for_selector(".partseg-marker[data-ready]")
    find(page)
    page.fill("#words textarea", "dog")
    assert "must map objects to their parts" in problem(page)
    assert page.query_selector("#result .partseg-viewer[data-painted]") is not None


def test_opacity_changes_the_picture(page, photo):
    upload(page, photo)
    page.wait_for_selector(".partseg-marker[data-ready]")
    find(page)
    page.fill("#opacity input[type=number]", "25")
    page.keyboard.press("Tab")
    opacity = "() => getComputedStyle(document.querySelector('#result canvas')).opacity"
    page.wait_for_function(f"({opacity})() === '0.25'")


def test_picked_photo_and_object_drawn_by_hand(page, tmp_path, screenshots):
    """Oracle-Obj: nothing outside the outline, and everything inside it, belongs to the object."""
    page.click("#picks button.thumbnail-item, #picks .thumbnail-lg, #picks button")
    page.wait_for_selector(".partseg-marker[data-ready]")
    page.fill("#words textarea", WORDS)
    page.click("#protocol label:has-text('I know the object')")
    page.wait_for_selector(".partseg-marker.active")
    page.wait_for_selector("#object")
    canvas = page.query_selector(".partseg-marker canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    corners = [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)]
    for number, (x, y) in enumerate(corners):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if number == 0:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_function("() => document.querySelector('#marks textarea').value.includes('outline')")
    page.screenshot(path=screenshots / "marking.png", full_page=True)
    page.click("#go")
    page.wait_for_selector("#result .partseg-viewer[data-painted]")
    page.screenshot(path=screenshots / "oracle.png", full_page=True)
    with Image.open(download(page, "labels", tmp_path)) as file:
        labels = np.asarray(file)
    assert (labels[65:175, 85:235] < 2).all()
    outside = np.ones_like(labels, bool)
    outside[55:185, 75:245] = False
    assert (labels[outside] == 65535).all()


def test_mistakes_are_explained(page, photo, tmp_path, screenshots):
    assert "no photo yet" in problem(page)

    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam")
    upload(page, tmp_path / "letter.jpg")
    message = page.wait_for_selector("#status .bad:has-text('letter')").inner_text()
    assert message == "letter.jpg is not an image that Pillow reads; convert it to JPEG or PNG"
    page.screenshot(path=screenshots / "error.png", full_page=True)


def test_photos_over_the_limit_are_refused(page, tmp_path):
    Image.new("RGB", (2000, 600)).save(tmp_path / "large.png")
    upload(page, tmp_path / "large.png")
    message = page.wait_for_selector("#status .bad").inner_text()
    assert "2000 x 600 = 1.2 megapixels, allowed are 1; shrink it" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the vocabulary is empty; write one object per line"),
        ("dog", "must map objects to their parts"),
        ("dog: head, head", "twice"),
        ("dog: <script>alert(1)</script>, " + "very " * 100 + "long", "shorten the class name"),
        ("/etc/words.yaml", "must map objects to their parts"),
    ],
)
def test_words_that_make_no_sense(page, photo, words, message):
    upload(page, photo)
    page.wait_for_selector(".partseg-marker[data-ready]")
    page.fill("#words textarea", words)
    assert message in problem(page)


def test_names_are_shown_as_text_not_as_markup(page, photo):
    upload(page, photo)
    page.wait_for_selector(".partseg-marker[data-ready]")
    find(page, "dog: <b id=injected>head</b>, хвост")
    assert page.query_selector("#injected") is None
