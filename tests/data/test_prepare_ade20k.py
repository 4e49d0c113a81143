"""The ADE20K tool on the two real images of the full release and on a hand-made annotation."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import prepare_ade20k_part
from converters import ade20k
from converters.conversion import PROVENANCE
from partseg.data.ade20k_part import ade20k_part_234
from partseg.utils.arguments import parse
from partseg.vocabulary.shipped import shipped

CAR, DOOR, HANDLE, WHEEL, WINDOW, BUILDING, PERSON, HEAD = 401, 774, 1180, 3035, 3050, 312, 1831, 1206


def run(source: Path, output: Path, *more: str) -> None:
    prepare_ade20k_part.main(
        parse(prepare_ade20k_part.Options, [f"ade20k={source}", f"output={output}", "processes=1", *more])
    )


def annotate(folder: Path, name: str, entries: list[tuple[int, object, int, tuple[int, int, int, int], int]]) -> Path:
    """Photo, json and instance masks of (raw id, ispartof, level, box, mask value) entries on a 30x40 picture."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(folder / f"{name}.jpg")
    (folder / name).mkdir()
    objects = []
    for number, (raw, parent, level, (top, left, bottom, right), value) in enumerate(entries):
        mask = np.zeros((30, 40), np.uint8)
        mask[top:bottom, left:right] = value
        file = f"{name}/instance_{number:03d}_{name}.png"
        Image.fromarray(mask).save(folder / file)
        parts = {"hasparts": [], "ispartof": parent, "part_level": level}
        objects.append({"id": number, "name_ndx": raw, "parts": parts, "instance_mask": file})
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"annotation": {"object": objects}}))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A car with a door (with a handle) and a wheel beyond its border, and a door of a building."""
    root = tmp_path / "ADE 20K part" / "ADE20K_2021_17_01"
    entries = [
        (CAR, [], 0, (5, 5, 25, 20), 255),
        (DOOR, 0, 1, (8, 8, 20, 14), 255),
        (HANDLE, [1], 2, (10, 10, 12, 12), 255),
        (WHEEL, 0, 1, (20, 15, 28, 23), 255),
        (BUILDING, [], 0, (0, 22, 30, 40), 255),
        (DOOR, 4, 1, (15, 30, 30, 36), 255),
        (HANDLE, 5, 2, (20, 31, 22, 33), 255),
        (WINDOW, 4, 1, (2, 30, 8, 36), 255),
        (PERSON, [], 0, (0, 0, 3, 3), 128),
        (HEAD, 8, 1, (0, 0, 2, 2), 128),
    ]
    annotate(root / "images/ADE/training/urban/street", "ADE_train_00000001", entries)
    annotate(root / "images/ADE/validation/urban/street", "ADE_val_00000001", entries[:2])
    annotate(root / "images/ADE/validation/urban/street", "ADE_val_00000002", entries[4:5])
    return root


def test_both_real_images_convert(samples: Path, tmp_path: Path):
    output = tmp_path / "ADE20KPart234"
    run(samples / "ade20k_full" / "ADE20K_2021_17_01", output, "link=true")
    names = shipped("ade20k_part_234")
    shown = {}
    for name in ("ADE_train_00016869", "ADE_train_00016964"):
        label = Image.open(output / f"annotations_detectron2_part/training/{name}.png")
        assert label.mode.startswith("I;16")
        ids = set(np.unique(np.asarray(label)).tolist()) - {65535}
        shown[name] = {names.object_parts[k] for k in ids}
    assert shown["ADE_train_00016964"] == {"van's license plate", "van's window"}
    assert {"car's wheel", "car's window", "car's door", "traffic light's housing"} <= shown["ADE_train_00016869"]
    dataset = ade20k_part_234(output, "train")
    assert len(dataset) == 2 and dataset.records[0].annotations


def test_parts_of_the_two_real_images_lie_in_their_own_class_of_the_release(samples: Path, tmp_path: Path):
    """The release's own part PNGs (R // 10 * 256 + G) say the same as what we painted from instance masks."""
    raw = {label: number for (_, number), label in ade20k.raw_ids().parts.items()}
    folder = samples / "ade20k_full/ADE20K_2021_17_01/images/ADE/training/urban/street"
    path = folder / "ADE_train_00016964.json"
    ade20k.convert(ade20k.AdeJob(path.stem, "train", str(path), str(tmp_path), link=True))
    ours = np.asarray(Image.open(tmp_path / f"annotations_detectron2_part/training/{path.stem}.png"))
    rgb = np.asarray(Image.open(folder / f"{path.stem}_parts_1.png")).astype(int)
    released = rgb[..., 0] // 10 * 256 + rgb[..., 1]
    plate = next(k for k in np.unique(ours) if k != 65535 and raw[k] == 1439)
    assert (released[ours == plate] == 1439).all() and (ours == plate).sum() == 5288
    window = next(k for k in np.unique(ours) if k not in (65535, plate))
    assert np.isin(released[ours == window], (3050, 3057)).all() and (ours == window).sum() == 12872 + 6392


def test_ownership_of_parts(source: Path, tmp_path: Path):
    output = tmp_path / "out"
    run(source.parent, output)
    names = shipped("ade20k_part_234")
    part = np.asarray(Image.open(output / "annotations_detectron2_part/training/ADE_train_00000001.png"))

    def shown(y: int, x: int) -> str:
        return names.object_parts[part[y, x]] if part[y, x] != 65535 else ""

    assert shown(9, 9) == "car's door" and shown(22, 17) == "car's wheel"
    assert shown(11, 11) == "car's handle" if ("car", "handle") in names.pairs else shown(11, 11) == "car's door"
    assert shown(26, 17) == "" and shown(22, 21) == ""  # the wheel is cut to the car's extent
    assert shown(21, 32) == "door's handle"  # the building is not one of the 44, so its door is an object
    assert shown(16, 31) == "" and shown(4, 32) == ""
    assert shown(1, 1) == ""  # hidden by something else
    data = json.loads((output / "ade20k_instance_train.json").read_text())
    assert [names.label_objects[a["category_id"]] for a in data["annotations"]] == ["car", "door"]
    car = coco_mask.decode(data["annotations"][0]["segmentation"])
    assert car.sum() == 20 * 15 == data["annotations"][0]["area"]
    provenance = json.loads((output / PROVENANCE).read_text())
    assert provenance["images"] == {"train": 1, "val": 1}
    assert provenance["left_out"] == {"no part of the 234 classes": 1}
    assert not provenance["comparable_with_benchmark"]
    assert len(ade20k_part_234(output, "val").records) == 1


def test_second_run_writes_nothing(source: Path, tmp_path: Path):
    run(source, tmp_path / "out")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "out").rglob("*.*") if p.suffix != ".json"}
    run(source, tmp_path / "out")
    assert before.keys() == {p for p in (tmp_path / "out").rglob("*.*") if p.suffix != ".json"}
    pictures = [p for p in before if p.suffix in (".png", ".jpg")]
    assert pictures and all(before[p] == (p.read_bytes(), p.stat().st_mtime_ns) for p in pictures)


def test_raw_ids_cover_the_vocabulary():
    assert len(set(ade20k.raw_ids().objects.values())) == 44
    assert set(ade20k.raw_ids().parts.values()) == set(range(234))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:60]), "cannot read .*ADE_train_00000001.json"),
        (lambda p: p.with_suffix(".jpg").unlink(), "has no photo ADE_train_00000001.jpg"),
        (lambda p: p.with_suffix(".jpg").write_bytes(p.with_suffix(".jpg").read_bytes()[:300]), "00000001.jpg"),
        (lambda p: (p.with_suffix("") / "instance_000_ADE_train_00000001.png").unlink(), "instance_000"),
        (lambda p: Image.new("RGB", (41, 30)).save(p.with_suffix(".jpg")), "rows x columns"),
        (lambda p: p.write_text(p.read_text().replace('"ispartof": 0', '"ispartof": 99')), "ispartof chain"),
    ],
)
def test_bad_input_is_named(source: Path, tmp_path: Path, break_it, message: str):
    break_it(source / "images/ADE/training/urban/street/ADE_train_00000001.json")
    with pytest.raises(ValueError, match=message):
        run(source, tmp_path / "out")


def test_missing_or_wrong_folders(samples: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="directory level"):
        run(tmp_path, tmp_path / "out")
    (tmp_path / "images/ADE/training").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="2016 and 2017 releases"):
        run(tmp_path, tmp_path / "out")
