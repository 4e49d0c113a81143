"""Photos as people have them: the right pixels, or one sentence that says what is wrong."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.data.images import list_images, natural_key, read_photo, unique_stems
from partseg.data.io import read_image

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def picture() -> Image.Image:
    """Red left half, blue right half, 40 x 20."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste((0, 0, 255), (20, 0, 40, 20))
    return image


def close(image: Image.Image, place: tuple[int, int], color: tuple[int, int, int], tolerance: int = 6) -> bool:
    return np.abs(np.subtract(image.getpixel(place), color)).max() <= tolerance


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "png"), ("P", "png"), ("P", "gif"), ("CMYK", "tif"), ("CMYK", "jpg"), ("RGBA", "webp"), ("LAB", "tif")],
)
def test_colour_modes(picture, tmp_path, mode, suffix):
    picture.convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / f"photo.{suffix}", quality=100)
    photo = read_photo(tmp_path / f"photo.{suffix}")
    assert (photo.image.mode, photo.size, photo.notes) == ("RGB", (20, 40), ())
    assert close(photo.image, (5, 5), RED, tolerance=45)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tag_turns_the_photo_upright(picture, tmp_path, orientation):
    stored_from_upright = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture if orientation == 1 else picture.transpose(stored_from_upright[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    photo = read_photo(tmp_path / "photo.png")
    assert np.array_equal(photo.image, picture)


def test_plain_photos_give_the_pixels_that_the_evaluation_reads(picture, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    for name, image in {"a.jpg": Image.fromarray(noise), "b.png": picture, "c.png": picture.convert("L")}.items():
        image.save(tmp_path / name)
        assert np.array_equal(read_photo(tmp_path / name).image, read_image(tmp_path / name))


def test_grey_of_16_bits_float_and_1_bit(tmp_path):
    half = {
        "16.png": np.full((4, 6), 32896, np.uint16),
        "16.tif": np.full((4, 6), 32896, np.uint16),
        "32.tif": np.full((4, 6), 32896, np.int32),
        "float.tif": np.full((4, 6), 0.502, np.float32),
    }
    for name, values in half.items():
        Image.fromarray(values).save(tmp_path / name)
        assert read_photo(tmp_path / name).image.getpixel((0, 0)) == (128, 128, 128), name
    Image.new("1", (5, 5), 1).save(tmp_path / "bit.png")
    assert read_photo(tmp_path / "bit.png").image.getpixel((0, 0)) == WHITE


def test_rgb_of_16_bits(tmp_path):
    """Written by hand, because Pillow cannot."""
    row = b"\x00" + struct.pack(">HHH", 65535, 0, 257 * 100) * 3

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(data)
    assert read_photo(tmp_path / "deep.png").image.getpixel((1, 1)) == (255, 0, 100)


def test_transparency_is_laid_over_white(picture, tmp_path):
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    photo = read_photo(tmp_path / "clear.png")
    assert photo.image.getpixel((0, 0)) == WHITE
    assert photo.notes == ("transparent pixels shown as white",)
    picture.convert("LA").save(tmp_path / "opaque.png")
    assert read_photo(tmp_path / "opaque.png").notes == ()


@pytest.mark.parametrize(
    ("suffix", "word"), [("gif", "frames"), ("png", "frames"), ("webp", "frames"), ("tif", "pages")]
)
def test_animations_give_their_first_frame_and_say_so(picture, tmp_path, suffix, word):
    others = [Image.new("RGB", (40, 20), color) for color in ((0, 255, 0), (255, 255, 0))]
    picture.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others)
    photo = read_photo(tmp_path / f"a.{suffix}")
    assert photo.notes == (f"first of 3 {word}",)
    assert close(photo.image, (2, 2), RED, tolerance=20)


def test_extreme_sizes(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    Image.new("RGB", (20000, 200)).save(tmp_path / "wide.jpg")
    assert read_photo(tmp_path / "one.png").size == (1, 1)
    assert read_photo(tmp_path / "wide.jpg").size == (200, 20000)
    with pytest.raises(ValueError, match=r"20000 x 200 = 4.0 megapixels, allowed are 2; shrink it"):
        read_photo(tmp_path / "wide.jpg", max_pixels=2_000_000)


def test_files_that_are_no_photos(picture, tmp_path):
    picture.save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(np.full((3, 3), -5, np.int32)).save(tmp_path / "negative.tif")
    for name, message in {
        "cut.jpg": "damaged or cut off",
        "empty.jpg": "not an image",
        "text.png": "not an image that Pillow reads; convert it",
        "negative.tif": "grey levels run from -5 to -5",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            read_photo(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(ValueError, match="is a folder"):
        read_photo(tmp_path)
    with pytest.raises(FileNotFoundError, match="no image"):
        read_photo(tmp_path / "missing.jpg")


def test_arrays_and_tensors(picture):
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for source in (picture, array, tensor, tensor.float() / 255, np.dstack([array, np.full((20, 40), 255, np.uint8)])):
        assert np.array_equal(read_photo(source).image, array)
    assert read_photo(array[..., 0]).image.getpixel((0, 0)) == WHITE
    for source, message in [
        (array.astype(float), "must be uint8 in 0..255, got float64"),
        (array.transpose(2, 0, 1), r"got \[3, 20, 40\]; channels-first data goes in as a torch tensor"),
        (tensor[None], "pass a batch as a list"),
        (tensor.float(), r"must lie in 0..1, got 0..255"),
        (tensor.float() * float("nan"), "must lie in 0..1"),
        (tensor.long(), "uint8 in 0..255 or float"),
        (7, "got int"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_photo(source)


def test_folders_files_and_globs_in_natural_order(tmp_path):
    for name in ("frame_10.png", "frame_9.png", "frame_1.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    for name in ("notes.txt", ".hidden.png", "._frame_1.png"):
        (tmp_path / name).write_text("x")
    images, others = list_images(tmp_path)
    assert [p.name for p in images] == ["frame_1.png", "frame_9.png", "frame_10.png"]
    assert [p.name for p in others] == ["notes.txt"]
    images, _ = list_images([tmp_path / "frame_9.png", f"{tmp_path}/frame_*.png"])
    assert [p.name for p in images] == ["frame_9.png", "frame_1.png", "frame_10.png"]
    for source in (tmp_path / "nothing", f"{tmp_path}/*.jpg"):
        with pytest.raises(FileNotFoundError, match="nothing|holds no image"):
            list_images(source)


def test_natural_key_survives_odd_names():
    names = ["é9", "É10", "10", "9", "a²", "٣", ""]
    assert sorted(names, key=natural_key)[:3] == ["", "9", "10"]


def test_output_names_never_collide():
    paths = [Path("a/x.png"), Path("a/x.jpg"), Path("b/x.png"), Path("c/X.png"), Path("d/x_png.gif")]
    names = unique_stems(paths)
    assert len({name.lower() for name in names.values()}) == len(paths)
    assert names[paths[0]] == "x"
