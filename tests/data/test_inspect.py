"""The inspector names every planted fault, and finds none in the real samples but their small number."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from partseg.data.inspect import Report, inspect
from partseg.data.inspect_sheet import contact_sheet, tables
from partseg.vocabulary.shipped import shipped

PART, OBJECT = "annotations_detectron2_part", "annotations_detectron2_obj"
CAT, DOG = 7, 11
CAT_HEAD, DOG_HEAD = (
    shipped("pascal_part_116").pairs.index(("cat", "head")),
    shipped("pascal_part_116").pairs.index(("dog", "head")),
)
SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


def maps(object_id: int = CAT, part_id: int = CAT_HEAD) -> tuple[np.ndarray, np.ndarray]:
    objects, parts = np.full((2, 30, 40), 255, np.uint8)
    objects[5:25, 5:30], parts[5:15, 5:20] = object_id, part_id
    return parts, objects


@pytest.fixture
def root(write_pascal: Callable[..., Path]) -> Path:
    """Four clean cats per split, in a folder with a space and "part" in its path."""
    images = {f"2008_{n:06d}": maps() for n in range(1, 5)}
    return write_pascal({"train": images, "val": images}, folder="a part of it/PascalPart116")


def found(report: Report, kind: str, split: str = "val") -> list[str]:
    names = [name for f in report.findings if f.kind == kind and f.split == split for name in f.names]
    assert any(f.kind == kind and f.split == split for f in report.findings), [
        (f.split, f.kind) for f in report.findings
    ]
    return names


def test_clean_toy_data_has_nothing_that_changes_a_score(root: Path):
    report = inspect("toy_pascal_part_116", root)
    assert not report.changes_score
    assert {split: counts.images for split, counts in report.splits.items()} == {"train": 4, "val": 4}
    assert report.splits["val"].parts == {CAT_HEAD: (4, 600)} and report.splits["val"].objects == {CAT: (4, 2000)}
    assert {f.kind for f in report.findings} == {"class without a pixel"}


def test_counts_are_compared_with_the_published_ones(root: Path):
    report = inspect("pascal_part_116", root, splits=("val",))
    assert report.changes_score
    names = found(report, "count differs from the published one")
    assert sorted(names) == ["4 (image, part) pairs, published 4957", "4 images, published 850"]


def test_training_images_without_a_seen_part_are_counted(write_pascal: Callable[..., Path]):
    images = {"2008_000001": maps(), "2008_000002": maps(DOG, DOG_HEAD), "2008_000003": maps(DOG, DOG_HEAD)}
    report = inspect("toy_pascal_part_116", write_pascal({"train": images, "val": images}))
    assert found(report, "image without a seen part", "train") == ["2008_000002", "2008_000003"]
    assert not any(f.kind == "image without a seen part" for f in report.findings if f.split == "val")
    assert not report.changes_score


def damage_jpeg(root: Path) -> str:
    path = root / "images/val/2008_000001.jpg"
    path.write_bytes(path.read_bytes()[:200])
    return "2008_000001.jpg"


def drop_label(root: Path) -> str:
    (root / PART / "val/2008_000002.png").unlink()
    return "2008_000002.jpg"


def drop_object(root: Path) -> str:
    (root / OBJECT / "val/2008_000002.png").unlink()
    return "2008_000002.jpg"


def drop_image(root: Path) -> str:
    (root / "images/val/2008_000003.jpg").unlink()
    return "2008_000003.png"


def resize_label(root: Path) -> str:
    Image.fromarray(np.full((30, 41), 255, np.uint8)).save(root / PART / "val/2008_000002.png")
    return "2008_000002.png"


def resize_object(root: Path) -> str:
    Image.fromarray(np.full((31, 40), 255, np.uint8)).save(root / OBJECT / "val/2008_000002.png")
    return "2008_000002.png"


def strange_id(root: Path) -> str:
    Image.fromarray(np.full((30, 40), 116, np.uint8)).save(root / PART / "val/2008_000002.png")
    return "[116]; allowed are 0..115 and 255"


def other_bits(root: Path) -> str:
    Image.fromarray(np.full((30, 40), 3, np.uint16)).save(root / PART / "val/2008_000002.png")
    return "16-bit"


def damage_label(root: Path) -> str:
    path = root / PART / "val/2008_000002.png"
    path.write_bytes(path.read_bytes()[:40])
    return "2008_000002.png"


def part_outside(root: Path) -> str:
    parts, _ = maps()
    parts[0, :7] = CAT_HEAD
    Image.fromarray(parts).save(root / PART / "val/2008_000004.png")
    return "2008_000004: 7 pixels"


def part_of_other(root: Path) -> str:
    Image.fromarray(maps(part_id=DOG_HEAD)[0]).save(root / PART / "val/2008_000004.png")
    return "2008_000004: 150 pixels"


def same_stem(root: Path) -> str:
    Image.new("RGB", (40, 30)).save(root / "images/val/2008_000004.png")
    return "2008_000004"


def no_folder(root: Path) -> str:
    for path in (root / OBJECT / "val").iterdir():
        path.unlink()
    (root / OBJECT / "val").rmdir()
    return f"{OBJECT}/val"


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (damage_jpeg, "unreadable file"),
        (damage_label, "unreadable file"),
        (other_bits, "unreadable file"),
        (drop_label, "image without part label"),
        (drop_object, "image without object label"),
        (drop_image, "part label without image"),
        (resize_label, "label of another size"),
        (resize_object, "label of another size"),
        (strange_id, "label id out of range"),
        (part_outside, "part outside its object"),
        (part_of_other, "part in another object"),
        (same_stem, "second file of one name"),
        (no_folder, "missing folder"),
    ],
)
def test_faults_that_change_a_score(root: Path, plant: Callable[[Path], str], kind: str):
    text = plant(root)
    report = inspect("toy_pascal_part_116", root)
    names = found(report, kind)
    assert len(names) == 1 and text in names[0]
    assert report.changes_score and all(f.split == "val" for f in report.findings if f.changes_score)


def test_notes_do_not_change_a_score(root: Path):
    (root / "images/val/._2008_000001.jpg").write_bytes(b"mac")
    (root / PART / "val/.DS_Store").write_bytes(b"mac")
    parts, _ = maps()
    parts[parts == CAT_HEAD] = 255
    Image.fromarray(parts).save(root / PART / "val/2008_000003.png")
    parts[6, 6] = CAT_HEAD + 1
    Image.fromarray(parts).save(root / PART / "val/2008_000004.png")
    report = inspect("toy_pascal_part_116", root)
    assert not report.changes_score
    assert [Path(name).name for name in found(report, "stray file", "all")] == [".DS_Store", "._2008_000001.jpg"]
    assert found(report, "image without a part pixel") == ["2008_000003"]
    second = shipped("pascal_part_116").object_parts[CAT_HEAD + 1]
    assert found(report, "class of one pixel in an image") == [f"2008_000004: {second}"]
    assert found(report, "class of one pixel in the split") == [second]


def test_converted_labels_are_not_the_benchmarks(root: Path):
    (root / "provenance.json").write_text(json.dumps({"complete": False, "not_comparable_because": "made here"}))
    report = inspect("toy_pascal_part_116", root)
    assert found(report, "labels not the benchmark's", "all") == ["made here"]
    assert report.changes_score and found(report, "conversion not finished", "all")


def test_processes_do_not_change_the_report(root: Path):
    part_outside(root)
    one, two = (inspect("toy_pascal_part_116", root, processes=n).to_dict() for n in (1, 2))
    assert one == two and json.loads(json.dumps(one)) == one


def test_ade_labels(tmp_path: Path, image_writer: Callable[..., None], write_json: Callable[[Path, object], Path]):
    names, folder = shipped("ade20k_part_234"), tmp_path / "ADE20K-Part-234"
    car, wheel = names.objects.index("car"), names.pairs.index(("car", "wheel"))
    label = np.full((30, 40), 65535, np.uint16)
    label[2:12, 2:16] = wheel
    for stem in ("ADE_val_1", "ADE_val_2"):
        image_writer(folder / f"images/validation/{stem}.jpg")
        path = folder / PART / f"validation/{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label if stem.endswith("1") else np.zeros((30, 40), np.uint8)).save(path)
    image = {"id": 1, "file_name": "ADE_val_1.jpg", "height": 30, "width": 40}
    annotation = {"id": 1, "image_id": 1, "category_id": car, "segmentation": SQUARE, "area": 100, "iscrowd": 0}
    others = [{**annotation, "id": 2, "category_id": 44}, {**annotation, "id": 3, "iscrowd": 1}]
    write_json(folder / "ade20k_instance_val.json", {"images": [image], "annotations": [annotation, *others]})
    report = inspect("ade20k_part_234", folder, splits=("val",))
    assert "8-bit" in found(report, "unreadable file")[0]
    assert "category 44" in found(report, "instance of no image or category")[0]
    assert found(report, "image without entry in ade20k_instance_val.json")[0].endswith("ADE_val_2.jpg")
    assert any(f.kind == "crowd annotations" and f.count == 1 for f in report.findings)
    assert found(report, "part outside its object") == ["ADE_val_1: 40 pixels"]
    assert not [f for f in report.findings if f.kind == "part outside its object" and f.changes_score]


def test_partimagenet_annotations(
    tmp_path: Path, image_writer: Callable[..., None], write_json: Callable[[Path, object], Path]
):
    root, tiger = tmp_path / "PartImageNet", "n02129604"
    stems = [f"{tiger}_{n}" for n in range(3)]
    for stem in stems[:2]:
        image_writer(root / f"images/val/{stem}.JPEG")
    images = [{"id": n, "file_name": f"{stem}.JPEG", "height": 30, "width": 40 + n} for n, stem in enumerate(stems)]
    square = {"category_id": 0, "segmentation": SQUARE, "area": 100, "iscrowd": 0}
    annotations = [
        {**square, "id": 0, "image_id": 0},
        {**square, "id": 1, "image_id": 1, "category_id": 24},
        {**square, "id": 2, "image_id": 1, "segmentation": [[1, 2, 3, 4]]},
    ]
    write_json(root / "annotations/val/val.json", {"images": images, "annotations": annotations})
    report = inspect("partimagenet_40", root, splits=("val",))
    assert f"{tiger}_1.JPEG is (30, 40), its annotation file says (30, 41)" in found(report, "label of another size")[0]
    assert len(found(report, "image without photo")) == 1
    assert any(f.kind == "part of another object" and f.changes_score for f in report.findings)
    assert any(f.kind == "polygons without an area or beyond any picture" and f.count == 1 for f in report.findings)
    names = shipped("partimagenet_40")
    assert report.splits["val"].parts == {names.pairs.index(("tiger", "head")): (1, 100)}


def test_real_samples(samples: Path):
    report = inspect("pascal_part_116", samples / "ov_parts/derived/PascalPart116", splits=("val",))
    assert {f.kind for f in report.findings if f.changes_score} == {"count differs from the published one"}
    assert report.splits["val"].pairs == 17 and len(report.splits["val"].objects) == 2
    sheet = contact_sheet(report)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3 and sheet.shape[1] > 1000
    assert tables(report) is not None


def test_sheet_leaves_unreadable_images_out(root: Path):
    clean = contact_sheet(inspect("toy_pascal_part_116", root), num_images=8)
    damage_jpeg(root)
    assert contact_sheet(inspect("toy_pascal_part_116", root), num_images=8).shape[0] <= clean.shape[0]
    for path in (root / "images").rglob("*.jpg"):
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no image with readable labels"):
        contact_sheet(inspect("toy_pascal_part_116", root))


def test_wrong_name_or_root(root: Path):
    with pytest.raises(KeyError, match="no data set 'pascal' in .*It has: "):
        inspect("pascal", root)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        inspect("pascal_part_116", root.parents[2] / "nowhere" / "nothing")
    with pytest.raises(FileNotFoundError, match="wrong level"):
        inspect("pascal_part_116", root / "images")
