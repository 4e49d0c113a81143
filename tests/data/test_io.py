import numpy as np
import pytest
from PIL import Image

from partseg.data import coco, io
from partseg.labels import IGNORE_LABEL


def test_photos_of_any_mode_become_rgb(tmp_path):
    for mode in ("L", "RGB", "RGBA", "CMYK", "P"):
        path = tmp_path / f"{mode}.{'jpg' if mode in ('L', 'RGB', 'CMYK') else 'png'}"
        Image.new(mode, (5, 4)).save(path)
        image = io.read_image(path)
        assert image.mode == "RGB" and image.size == (5, 4)


def test_labels_keep_every_16_bit_value(tmp_path, label_writer):
    ids = np.array([[0, 233, 255], [256, 40000, 65535]], np.uint16)
    label_writer(tmp_path / "x.png", ids)
    read = io.read_label(tmp_path / "x.png", bits=16)
    assert read.dtype == np.uint16 and np.array_equal(read, ids)


def test_none_becomes_ignore_and_everything_else_is_checked():
    lut = np.full(IGNORE_LABEL + 1, IGNORE_LABEL, np.int32)
    lut[:3] = [7, 8, 9]
    for bits, none, dtype in ((8, 255, np.uint8), (16, 65535, np.uint16)):
        table = io.file_table(lut, 3, bits=bits)
        ids = np.array([[0, 2, none]], dtype)
        assert io.translate(ids, table, path="x.png", what="part").tolist() == [[7, 9, IGNORE_LABEL]]
        with pytest.raises(ValueError, match=rf"x\.png holds part ids \[3, 200\], allowed are 0\.\.2 and {none}"):
            io.translate(np.array([3, 200, 3], dtype), table, path="x.png", what="part")
    with pytest.raises(ValueError, match="300 classes do not fit in 8-bit"):
        io.file_table(lut, 300, bits=8)


def test_polygons_are_painted_as_pycocotools_does(rectangle):
    mask = coco.decode_mask(rectangle(2, 1, 6, 4), height=8, width=10, path="x.jpg")
    expected = np.zeros((8, 10), bool)
    expected[1:4, 2:6] = True
    assert mask.dtype == bool and np.array_equal(mask, expected)
    two = coco.decode_mask(rectangle(2, 1, 6, 4) + rectangle(0, 6, 2, 8), height=8, width=10, path="x.jpg")
    expected[6:8, 0:2] = True
    assert np.array_equal(two, expected)


@pytest.mark.parametrize(
    ("segmentation", "kept", "left_out"),
    [
        ([[1, 2]], None, 1),
        ([[1, 2, 3, 4]], None, 1),
        ([[1, 1, 2, 2, 3, 3]], None, 1),
        ([[1, 1, 5, 1, 5, 5, 9]], None, 1),
        ([[0, 0, float("nan"), 0, 1, 1]], None, 1),
        ([], None, 0),
        (None, None, 0),
        ([0, 0, 4, 0, 4, 4], [[0, 0, 4, 0, 4, 4]], 0),
        ([[1, 2], [0, 0, 4, 0, 4, 4]], [[0, 0, 4, 0, 4, 4]], 1),
        ({"size": [1, 1], "counts": [1]}, {"size": [1, 1], "counts": [1]}, 0),
    ],
)
def test_repair_segmentation(segmentation, kept, left_out):
    assert coco.repair_segmentation(segmentation) == (kept, left_out)


def test_unreadable_mask_names_the_image():
    for segmentation in ({"size": [2, 2]}, {"size": [9, 9], "counts": [81]}, "polygon"):
        with pytest.raises(ValueError, match=r"annotation of x\.jpg cannot be read"):
            coco.decode_mask(segmentation, height=2, width=2, path="x.jpg")


def test_stems_of_foreign_paths():
    assert io.file_stem("a/b.c/ADE_train_1.jpg") == io.file_stem(r"C:\x\ADE_train_1.png") == "ADE_train_1"
