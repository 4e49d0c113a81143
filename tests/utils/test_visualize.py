"""Overlays, legends and sheets: colours follow names, untouched pixels stay, files are never half-written."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from partseg.labels import IGNORE_LABEL
from partseg.photo_prediction import PhotoPrediction
from partseg.utils.heat import heat_picture, heat_scale, with_heat_bar
from partseg.utils.visualize import color_of, lab, legend, named, overlay, palette, save_png, short, spots, tile
from partseg.vocabulary.phrases import Phrases
from partseg.vocabulary.shipped import shipped

GREY = np.full((8, 10, 3), 100, np.uint8)


def test_colour_depends_on_the_name_alone_and_is_pinned():
    assert color_of("dog's head") == color_of("dog's head")
    assert color_of("dog's head") != color_of("dog's ear")
    assert all(isinstance(channel, int) and 0 <= channel <= 255 for channel in color_of("x"))


@pytest.mark.parametrize("name", ["pascal_part_116", "ade20k_part_234", "partimagenet_40"])
def test_parts_of_one_object_never_look_alike(name):
    vocabulary = shipped(name)
    colors = palette(vocabulary.object_parts)
    assert (
        len(colors) == len(vocabulary)
        and np.mean([a == color_of(n) for a, n in zip(colors, vocabulary.object_parts)]) > 0.8
    ), "most keep the colour of their name in every vocabulary"
    for object_id in range(vocabulary.num_objects):
        points = np.array([lab(colors[k]) for k in vocabulary.parts_of_object(object_id)])
        apart = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(len(points), 1)]
        assert not len(apart) or apart.min() >= 15


def test_lab_is_that_of_known_colours():
    for color, expected in (((255, 255, 255), (100, 0, 0)), ((0, 0, 0), (0, 0, 0)), ((255, 0, 0), (53.2, 80.1, 67.2))):
        assert lab(color) == pytest.approx(expected, abs=0.1)


def test_free_words_are_apart_and_a_legend_has_the_pictures_colours():
    words = tuple(f"word {i}" for i in range(12))
    points = np.array([lab(color) for color in palette(words)])
    assert np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(12, 1)].min() >= 15
    assert len(palette(tuple(map(str, range(1000))))) == 1000
    picture = legend(["b"], colors=[(1, 2, 3)])
    assert (picture == (1, 2, 3)).all(-1).any()


def test_overlay_colours_known_labels_and_leaves_the_rest():
    labels = np.full((8, 10), IGNORE_LABEL, np.int32)
    labels[2:6, 2:8] = 1
    labels[0, 0] = 2
    shown = overlay(GREY, labels, ["a", "b"], alpha=0.5)
    assert (shown[labels != 1] == 100).all()
    inside = np.rint(0.5 * 100 + 0.5 * np.array(color_of("b")))
    assert np.abs(shown[3, 4] - inside).max() <= 1
    assert (shown[2, 2] == np.rint(0.6 * np.array(color_of("b"), np.float32))).all(), "the border is drawn"
    plain = overlay(GREY, labels, ["a", "b"], alpha=0.5, outline=False)
    assert np.abs(plain[2, 2] - inside).max() <= 1
    assert (GREY == 100).all(), "the input is not written to"


def test_overlay_of_nothing_and_bad_input():
    assert (overlay(GREY, np.full((8, 10), -1), ["a"]) == GREY).all()
    assert (overlay(GREY, np.zeros((8, 10), int), []) == GREY).all()
    with pytest.raises(ValueError, match=r"labels are \[4, 4\].*\[8, 10\]"):
        overlay(GREY, np.zeros((4, 4), int), ["a"])
    with pytest.raises(ValueError, match="uint8"):
        overlay(GREY.astype(np.float32), np.zeros((8, 10), int), ["a"])


def test_legend_shows_every_colour_and_grows_with_the_names():
    names = ["dog's head", "dog's tail", "cow's horn"]
    picture = legend(names)
    present = {tuple(int(v) for v in pixel) for pixel in picture.reshape(-1, 3)}
    assert {color_of(name) for name in names} <= present
    assert legend(names, columns=3).shape[0] < picture.shape[0]
    assert legend(names, width=500).shape[1] == 500
    assert legend([]).shape[2] == 3


def test_tile_places_images_row_by_row():
    red, blue = np.zeros((4, 6, 3), np.uint8), np.zeros((8, 5, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = tile([red, blue, red], columns=2, gap=2)
    assert sheet.shape == (2 * 10 + 2, 2 * 8 + 2, 3)
    assert (sheet[2:6, 2:8] == red).all() and (sheet[2:10, 10:15] == blue).all() and (sheet[12:16, 2:8] == red).all()
    assert (sheet[11, 10:] == 255).all()
    captioned = tile([red, blue], columns=2, captions=["a very long caption", ""], gap=2)
    assert captioned.shape[0] > 12
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        tile([red, blue], columns=2, captions=["a"])
    with pytest.raises(ValueError, match="no images"):
        tile([], columns=2)
    with pytest.raises(ValueError, match="columns"):
        tile([red], columns=0)


def test_save_png_is_atomic(tmp_path):
    path = save_png(GREY, tmp_path / "new" / "x.png")
    assert (np.asarray(Image.open(path)) == GREY).all()
    with pytest.raises(TypeError):
        save_png(np.zeros((2, 2, 7), np.float64), path)
    assert [entry.name for entry in path.parent.iterdir()] == ["x.png"]
    assert (np.asarray(Image.open(path)) == GREY).all(), "a failed write leaves the old picture"


def test_names_are_written_where_parts_are_widest():
    labels = np.full((90, 120), IGNORE_LABEL, np.int32)
    labels[10:60, 10:110] = 1
    labels[70:72, :] = 0  # too thin for a line of text
    found = spots(labels, 2)
    assert list(found) == [1] and labels[found[1].row, found[1].column] == 1 and found[1].radius >= 20
    plain = np.full((90, 120, 3), 100, np.uint8)
    shown = named(plain, labels, ["cat's ear", "dog's head"])
    changed = (shown != plain).any(-1)
    assert changed.any() and (labels[changed] == 1).all()
    assert short("dog's head") == "head" and short("the wheel") == "the wheel"
    assert spots(np.full((4, 4), IGNORE_LABEL), 2) == {}


def test_names_do_not_cover_each_other():
    labels = np.full((40, 300), IGNORE_LABEL, np.int32)
    labels[:, 100:150], labels[:, 150:200] = 0, 1
    black = np.zeros((40, 300, 3), np.uint8)
    long = named(black, labels, ["a name of some length", "another of that length"]) > 200
    assert long[:, :120].any() and not long[:, 195:].any(), "the second has no room beside the first"
    both = named(black, labels, ["ab", "cd"]) > 200
    assert both[:, :150].any() and both[:, 150:].any()


def test_maps_side_by_side_have_one_scale():
    heats = [np.array([[0.0, 0.2]]), np.array([[0.1, 0.4]])]
    scale = heat_scale(heats)
    assert scale == (0.0, 0.4)
    black = np.zeros((10, 20, 3), np.uint8)
    weak, strong = (heat_picture(black, heat, scale=scale) for heat in heats)
    assert weak.sum() < strong.sum() and heat_picture(black, heats[0], scale=(0.2, 0.2)).max() == 0
    sheet = with_heat_bar(strong, scale)
    assert sheet.shape[0] > strong.shape[0] and sheet.shape[1] >= strong.shape[1]


def test_the_legend_of_a_small_photo_is_no_ribbon():
    words = Phrases.of([f"word {i}" for i in range(60)])
    labels = np.arange(64 * 64).reshape(64, 64) % 60
    image = np.zeros((64, 64, 3), np.uint8)
    found = PhotoPrediction(labels, image, words, words.texts, "a", "a.jpg", "pred_all")
    height, width, _ = found.picture().shape
    assert width < 4 * height
