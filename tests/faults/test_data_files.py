"""Damaged, incomplete and absurd data sets: one line with file and entry, or left out, counted and named. No crash."""

import json
import logging
import shutil
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import draw_toy
from converters import ade20k, partimagenet
from partseg.data import catalog, coco, io
from partseg.data.images import read_photo
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.evaluation import results
from partseg.geometry import InputSpec
from partseg.structures import Record
from partseg.utils import arguments
from partseg.vocabulary.names import Vocabulary

HEIGHT, WIDTH = 20, 30
SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
FULL = {"size": [HEIGHT, WIDTH], "counts": [100, 100, 400]}
STEM = "n02129604_12"  # a tiger, which is seen


def noise(shape):
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_coco(path, **changes):
    """One image with two annotations; `changes` replace keys of the first entry of a list, None removes the key."""
    data = {
        "images": [{"id": 1, "file_name": f"{STEM}.JPEG", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {"id": 10 + n, "image_id": 1, "category_id": n, "segmentation": SQUARE, "area": 100} for n in range(2)
        ],
        "categories": [],
    }
    for kind, entries in changes.items():
        if isinstance(entries, dict):
            data[kind][0].update(entries)
            data[kind][0] = {key: value for key, value in data[kind][0].items() if value != "REMOVED"}
        else:
            data[kind] = entries
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def png(path, depth, kind, row, palette=b""):
    """A PNG of one row, written by hand: Pillow writes no such ones."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = 8 * len(row) // depth
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    body = (chunk(b"PLTE", palette) if palette else b"") + chunk(b"IDAT", zlib.compress(b"\0" + row))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b""))
    return path


@pytest.fixture
def imagenet(tmp_path):
    """Function: changes of `write_coco` -> PartImageNet of one tiger, through the catalog."""

    def build(**changes):
        save(tmp_path / "images" / "val" / f"{STEM}.JPEG", noise((HEIGHT, WIDTH, 3)))
        write_coco(tmp_path / "annotations" / "val.json", **changes)
        return catalog.get("partimagenet_40", split="val", root=tmp_path)

    return build


@pytest.fixture
def ade(tmp_path):
    """Function: changes of `write_coco` -> ADE20K-Part-234 of one image, through the catalog."""

    def build(**changes):
        save(tmp_path / "images" / "validation" / f"{STEM}.png", noise((HEIGHT, WIDTH, 3)))
        labels = tmp_path / "annotations_detectron2_part" / "validation" / f"{STEM}.png"
        save(labels, np.full((HEIGHT, WIDTH), 65535, np.uint16))
        write_coco(tmp_path / "ade20k_instance_val.json", **changes)
        return catalog.get("ade20k_part_234", split="val", root=tmp_path, unseen_training_images=False)

    return build


@pytest.mark.parametrize("overrides", [{}, {"split": "train"}])
def test_part_labels_whose_photo_is_gone_are_refused(toy_run, tmp_path, overrides):
    root = shutil.copytree(toy_run.parent / "data" / "ToyPascalPart116", tmp_path / "toy")
    split = overrides.get("split", "val")
    gone = sorted((root / "images" / split).iterdir())[0]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 labels in .*part.{split} have no photo, the first is {gone.stem}"):
        catalog.get("toy_pascal_part_116", split=split, root=root)


def test_deep_greys_are_the_same_photo_for_training_and_prediction(tmp_path):
    """Pillow alone makes 99.6 % of the 65536 levels white."""
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    for image in (io.read_image(tmp_path / "deep.png"), read_photo(tmp_path / "deep.png").image):
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image)[..., 1], np.rint(levels / 257).astype(np.uint8))


@pytest.mark.parametrize(
    "polygon",
    [
        [0, 0, 1e8, 0, 1e8, 1e8, 0, 1e8],
        [0, 0, -1e9, 0, 5, 5],
        [0, 0, 1e300, 0, 1e300, 1e300],
        [value for n in range(40) for value in (n, 99_000 * (n % 2))],
        ["0", "0", "4", "0", "4", "4"],
        [None, 0, 4, 0, 4, 4],
        [[0, 0], [4, 0], [4, 4]],
        [[0, 0], [4, 0], 4, 4, 4, 4],
        [0, 0, 10**400, 0, 4, 4],
        "no polygon",
        5,
    ],
    ids=lambda polygon: str(polygon)[:24],
)
def test_absurd_polygons_are_left_out_counted_and_named(imagenet, caplog, polygon):
    with caplog.at_level(logging.WARNING):
        dataset = imagenet(annotations={"segmentation": [polygon]})
    assert "annotation 10 has a polygon" in caplog.text and dataset.skipped["broken_polygon"] == 1
    assert int((dataset[0].object_part < 65535).sum()) == 100
    with pytest.raises(ValueError, match=r"an annotation of x\.jpg cannot be read as a mask"):
        coco.decode_mask([polygon], height=HEIGHT, width=WIDTH, path="x.jpg")


@pytest.mark.parametrize("segmentation", [5, True])
def test_segmentations_of_another_type_are_left_out(imagenet, segmentation):
    dataset = imagenet(annotations={"segmentation": segmentation})
    assert dataset.skipped["empty_annotation"] == 1 and len(dataset.records[0].annotations) == 1


@pytest.mark.parametrize(
    "rle",
    [
        {**FULL, "counts": [100, 10_000, 400]},
        {**FULL, "counts": [100, 2**33, 400]},
        {**FULL, "counts": [2**32 - 100, 200, 500]},
        {**FULL, "counts": [100, -10, 510]},
        {**FULL, "counts": [100, 10]},
        {**FULL, "counts": []},
        {**FULL, "counts": [100, 10.5, 489.5]},
        {**FULL, "counts": None},
        {**FULL, "counts": ""},
        {**FULL, "counts": "hello world !!!"},
        {**FULL, "counts": "P" * 40},
        {**FULL, "counts": "o" * 25},
        {**FULL, "counts": "0" * 100_000},
        {**FULL, "counts": "\N{DOG FACE}"},
        {**FULL, "size": [-HEIGHT, -WIDTH]},
        {**FULL, "size": "2030"},
        {"counts": [600]},
        {"nothing": "of it"},
    ],
    ids=lambda rle: str(rle.get("counts"))[:24],
)
def test_run_lengths_that_do_not_fill_their_size_are_left_out(ade, caplog, rle):
    """pycocotools returns whatever lies in memory for those that end early."""
    with caplog.at_level(logging.WARNING):
        dataset = ade(annotations={"segmentation": rle})
    assert dataset.skipped["broken_rle"] == 1 and len(dataset.records[0].annotations) == 1
    assert "annotation 10 and others like it are left out: " in caplog.text
    with pytest.raises(ValueError, match=r"an annotation of x\.jpg cannot be read as a mask"):
        coco.decode_mask(rle, height=HEIGHT, width=WIDTH, path="x.jpg")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999, 1.0])
def test_run_lengths_are_read_as_pycocotools_reads_them(share):
    mask = np.random.default_rng(1).random((67, 301)) < share
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (rle["counts"], rle["counts"].decode("ascii")):
        found = coco.decode_mask({"size": [67, 301], "counts": counts}, height=67, width=301, path="x.jpg")
        assert found.dtype == bool and found.flags.f_contiguous and np.array_equal(found, mask)
    lengths = coco.run_lengths({"size": [67, 301], "counts": rle["counts"]}).tolist()
    plain = coco.decode_mask({"size": [67, 301], "counts": lengths}, height=67, width=301, path="x.jpg")
    assert np.array_equal(plain, mask)


ENTRIES = [
    ({"images": {"id": "REMOVED"}}, r"images\[0\] has no 'id'"),
    ({"images": {"file_name": "REMOVED"}}, r"images\[0\] \(id 1\) has no 'file_name'"),
    ({"images": {"file_name": 7}}, r"images\[0\] \(id 1\) has file_name = 7, it must be text"),
    ({"images": {"height": "tall"}}, r"has height = 'tall', it must be a whole number or null"),
    ({"images": {"id": [1]}}, r"images\[0\] has id = \[1\], it must be a whole number or text"),
    ({"images": [5]}, r"images\[0\] is int, not an object with keys"),
    ({"images": {"id": 1.5}}, r"has id = 1.5"),
    ({"images": {}, "annotations": "none"}, "'annotations' is str, not a list"),
    ({"annotations": {"image_id": "REMOVED"}}, r"annotations\[0\] \(id 10\) has no 'image_id'"),
    ({"annotations": {"image_id": [1]}}, r"annotations\[0\] \(id 10\) has image_id = \[1\]"),
    ({"annotations": {"category_id": "REMOVED"}}, r"annotations\[0\] \(id 10\) has no 'category_id'"),
    ({"annotations": {"category_id": "3"}}, r"has category_id = '3', it must be a whole number"),
    ({"categories": [{"name": "bench"}]}, r"categories\[0\] has no 'id'"),
    ({"categories": [{"id": 3, "name": 3}]}, r"categories\[0\] \(id 3\) has name = 3, it must be text or null"),
]


@pytest.mark.parametrize(("changes", "message"), ENTRIES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_reader_names_file_entry_and_key(imagenet, ade, tmp_path, changes, message):
    for build, name in ((imagenet, r"val\.json"), (ade, r"ade20k_instance_val\.json")):
        with pytest.raises(ValueError, match=rf"{name}.*{message}"):
            build(**changes)
    with pytest.raises(ValueError, match=message):
        partimagenet.make_jobs(tmp_path, "val")


@pytest.mark.parametrize(("key", "value"), [("name_ndx", None), ("parts", "none"), ("id", [])])
def test_ade20k_preparation_names_file_entry_and_key(tmp_path, key, value):
    entry = {"id": 0, "name_ndx": 1, "parts": {"ispartof": [], "part_level": 0}, "instance_mask": "x.png"}
    broken = {**entry, key: value} if value is not None else {k: v for k, v in entry.items() if k != key}
    path = tmp_path / "ADE_train_1.json"
    path.write_text(json.dumps({"annotation": {"object": [entry, broken]}}))
    with pytest.raises(ValueError, match=r"cannot read annotation\.object\[1\] of .*ADE_train_1\.json"):
        ade20k.read_annotation(path)


def test_preparation_that_cannot_read_or_write_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["draw_toy.py", f"root={tmp_path}/file/below"])
    assert arguments.run(lambda options: options.root.write_text("x"), draw_toy.Options, "") == 2
    assert "error: [Errno 20] Not a directory" in capsys.readouterr().err


def test_json_of_other_shapes_is_one_line(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json is not valid JSON"):
        io.read_json(tmp_path / "deep.json")
    (tmp_path / "provenance.json").write_text("[]")
    assert not results.is_synthetic(tmp_path / "images" / "x.jpg")


def test_labels_whose_ids_a_tool_changed_are_refused(tmp_path):
    """Pillow stretches greys of few bits; a palette of greys may have new numbers for old greys."""
    for depth, row in ((4, b"\x12"), (2, b"\x1b"), (1, b"\x1b")):
        with pytest.raises(ValueError, match=f"is {depth}-bit, this data set stores 8-bit"):
            io.read_label(png(tmp_path / "few.png", depth, 0, row), bits=8)
    greys = bytes([7, 7, 7, 255, 255, 255])
    with pytest.raises(ValueError, match="grey palette that shows id 0 as 7; a tool"):
        io.read_label(png(tmp_path / "renumbered.png", 8, 3, b"\x00\x01", greys), bits=8)


def test_labels_with_a_palette_to_look_at_are_read_by_their_ids(tmp_path):
    voc = bytes([0, 0, 0, 128, 0, 0, 0, 128, 0])
    assert io.read_label(png(tmp_path / "voc.png", 4, 3, b"\x12", voc), bits=8).tolist() == [[1, 2]]
    same = bytes(value for level in range(256) for value in (level, level, level))
    assert io.read_label(png(tmp_path / "same.png", 8, 3, b"\x07\xff", same), bits=8).tolist() == [[7, 255]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1)])
def test_pictures_of_one_row_train_and_evaluate(tmp_path, shape):
    """The official recipe shrinks the long edge to 1333 first."""
    save(tmp_path / "x.png", noise((*shape, 3)))
    save(tmp_path / "part.png", np.zeros(shape, np.uint8))
    record = Record("x", str(tmp_path / "x.png"), object_part_file_name=str(tmp_path / "part.png"))
    vocabulary = Vocabulary.from_mapping({"dog": ["head"]})
    official = EvalMapper(InputSpec((16, 16), via=(800, 1333)))
    for mapper in (TrainMapper(16, short_edge=800, long_edge=1333), official):
        sample = mapper(record, label_vocabulary=vocabulary, vocabulary=vocabulary, rng=np.random.default_rng(0))
        assert sample.image.shape == (3, 16, 16) and (sample.object_part == 0).all()
