"""The Pascal-Part tool on real .mat files and on a small synthetic copy of the same layout."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import prepare_pascal_part
from converters import pascal
from converters.conversion import ITEMS, PROVENANCE
from partseg.data.pascal_part import pascal_part_116
from partseg.utils.arguments import parse
from partseg.vocabulary.shipped import shipped

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "datasets" / "prepare_pascal_part.py"


def run(*arguments: object) -> None:
    prepare_pascal_part.main(parse(prepare_pascal_part.Options, [*map(str, arguments), "processes=1"]))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def struct(**fields: object) -> np.ndarray:
    value = np.empty((1, 1), [(name, object) for name in fields])
    for name, content in fields.items():
        value[name][0, 0] = content
    return value


def row(structs: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(structs, axis=1) if structs else np.empty((0, 0))


def write_mat(path: Path, objects: list[tuple[str, np.ndarray, list[tuple[str, np.ndarray]]]]) -> None:
    """As the original: anno.objects(1,N) of class, class_ind, mask, parts(1,M) or (0,0)."""
    entries = [
        struct(
            **{"class": name, "class_ind": 1},
            mask=mask.astype(np.uint8),
            parts=row([struct(part_name=part, mask=m.astype(np.uint8)) for part, m in parts]),
        )
        for name, mask, parts in objects
    ]
    savemat(path, {"anno": struct(imname=path.stem, objects=row(entries))}, do_compression=True)


def rectangle(top: int, left: int, bottom: int, right: int, shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A VOCdevkit and Annotations_Part with four images; the path has spaces and "part" in it on purpose."""
    root = tmp_path / "pascal part source"
    for folder in ("Annotations_Part", "VOCdevkit/VOC2010/JPEGImages", "VOCdevkit/VOC2012/SegmentationClass"):
        (root / folder).mkdir(parents=True)
    lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2008_000002\n2011_000001\n")
    for number in range(1, 5):
        add_image(root, f"2008_{number:06d}", seed=number)
    return root


def add_image(root: Path, name: str, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    photo = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))
    photo.save(root / f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg")
    cow, dog = rectangle(5, 5, 30, 25), rectangle(10, 20, 35, 50)
    classes = np.zeros((40, 60), np.uint8)
    classes[cow], classes[dog], classes[0] = 10, 12, 255
    Image.fromarray(classes).save(root / f"VOCdevkit/VOC2012/SegmentationClass/{name}.png")
    parts = [("torso", rectangle(5, 5, 30, 28)), ("head", rectangle(5, 5, 12, 12)), ("leye", rectangle(6, 6, 8, 8))]
    write_mat(
        root / f"Annotations_Part/{name}.mat",
        [("cow", cow, parts), ("dog", dog, [("torso", dog)]), ("table", rectangle(30, 0, 40, 60), [])],
    )


def arguments(source: Path, output: Path) -> list[object]:
    return [f"annotations={source / 'Annotations_Part'}", f"voc={source / 'VOCdevkit'}", f"output={output}"]


def test_names_cover_the_original_193_and_all_116():
    assert len(pascal.part_ids()) == 193
    assert set(pascal.part_ids().values()) == set(range(116))
    assert shipped("pascal_part_116").object_parts[pascal.part_id("train", "cleftside_7", Path("x"))] == "train's side"


def test_names_of_the_original_statistics_all_map(samples: Path):
    labels = shipped("pascal_part_116").label_objects
    lines = (samples / "pascal_part/lists/stat_part_pascal_site.txt").read_text().split("\n")
    entries = [line.replace("#", "").split() for line in lines if line.strip()]
    assert len(entries) > 300
    for number, name, *_ in entries:
        pascal.part_id(labels[int(number.rstrip(":")) - 1], name, Path("list"))


def test_benchmark_val_list_is_inside_the_default_rule(samples: Path):
    voc = (samples / "pascal_part/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").read_text().split()
    benchmark = (samples / "ov_parts/lists/pascalpart116_val_850.txt").read_text().split()
    candidates = {name for name in voc if name[:4] in ("2008", "2009", "2010")}
    assert len(candidates) == 931 and len(benchmark) == 850
    assert set(benchmark) <= candidates


def test_real_files_convert_and_agree_with_the_official_labels(samples: Path, tmp_path: Path):
    output, original = tmp_path / "PascalPart116", samples / "ov_parts/derived/PascalPart116"
    run(*arguments(samples / "pascal_part", output), "clip_to_voc=all")
    provenance = json.loads((output / PROVENANCE).read_text())
    assert provenance["images"] == {"train": 13, "val": 2}  # the chairs and table of 2010_001199 have no part
    assert provenance["left_out"] == {"no part label": 1}
    for kind in ("obj", "part"):
        for name in ("2008_000009", "2008_000700"):
            path = f"annotations_detectron2_{kind}/val/{name}.png"
            official, ours = (np.asarray(Image.open(folder / path)) for folder in (original, output))
            agreement = (official == ours)[official != 255].mean()
            assert agreement >= 0.995, (path, agreement)
    dataset = pascal_part_116(output, "val")
    assert len(dataset) == 2 and dataset[1].object_part.shape == (375, 500)


def test_all_real_annotations_convert_without_voc_masks(samples: Path, tmp_path: Path):
    run(*arguments(samples / "pascal_part", tmp_path / "out"), "link=true")
    assert len(list((tmp_path / "out/images").rglob("*.jpg"))) == 15
    photo = tmp_path / "out/images/val/2008_000009.jpg"
    assert photo.is_symlink() and photo.resolve().is_file()


def test_layout_and_counts(source: Path, tmp_path: Path):
    output = tmp_path / "out part"
    run(*arguments(source, output), "clip_to_voc=all")
    names = shipped("pascal_part_116")
    part = np.asarray(Image.open(output / "annotations_detectron2_part/val/2008_000002.png"))
    obj = np.asarray(Image.open(output / "annotations_detectron2_obj/val/2008_000002.png"))
    assert names.object_parts[part[6, 6]] == "cow's eye" and names.object_parts[part[9, 9]] == "cow's head"
    assert names.label_objects[obj[20, 22]] == names.pairs[part[20, 22]][0] == "dog"
    assert (part[0] == 255).all() and (part[20, 26:28] != 255).all()
    assert names.label_objects.index("diningtable") not in obj
    assert len(list((output / "images/train").iterdir())) == 3
    counts = json.loads((output / "annotations_detectron2_part/val_part_label_count.json").read_text())
    assert list(counts) == ["2008_000002.png"] and len(counts["2008_000002.png"]) == 4
    provenance = json.loads((output / PROVENANCE).read_text())
    assert provenance["complete"] and not provenance["comparable_with_benchmark"]
    assert provenance["images_per_class"]["train"]["object_part"]["cow's eye"] == 3
    assert provenance["images_per_class"]["train"]["object_part"]["person's head"] == 0


def test_without_masks_a_later_instance_lies_on_top():
    cow, dog = rectangle(5, 5, 30, 25), rectangle(10, 20, 35, 50)
    objects = [pascal.PascalObject("cow", cow, (("torso", cow),)), pascal.PascalObject("dog", dog, (("head", dog),))]
    obj, part = pascal.label_maps(objects, (40, 60), None, Path("x"))
    names = shipped("pascal_part_116")
    assert names.object_parts[part[20, 22]] == "dog's head" and names.label_objects[obj[20, 22]] == "dog"
    assert names.object_parts[part[7, 7]] == "cow's torso"


def test_rerun_changes_nothing_and_other_options_are_refused(source: Path, tmp_path: Path):
    output = tmp_path / "out"
    before_source = tree(source)
    run(*arguments(source, output))
    before = tree(output)
    times = {p: p.stat().st_mtime_ns for p in output.rglob("*.png")}
    run(*arguments(source, output))
    assert tree(output) == before and tree(source) == before_source
    assert times == {p: p.stat().st_mtime_ns for p in output.rglob("*.png")}
    with pytest.raises(ValueError, match="clip_to_voc.*choose another output folder"):
        run(*arguments(source, output), "clip_to_voc=all")
    assert tree(output) == before


def test_source_that_grew_extends_the_result(source: Path, tmp_path: Path):
    run(*arguments(source, tmp_path / "out"))
    add_image(source, "2008_000009", seed=9)
    run(*arguments(source, tmp_path / "out"))
    run(*arguments(source, tmp_path / "fresh"))
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_user_files_are_never_replaced(source: Path, tmp_path: Path):
    theirs = tmp_path / "out/annotations_detectron2_part/train/2008_000001.png"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"1 of 4 items failed(.|\n)*2008_000001.png exists already"):
        run(*arguments(source, tmp_path / "out"))
    assert theirs.read_bytes() == b"mine"
    theirs.unlink()
    run(*arguments(source, tmp_path / "out"))
    theirs.write_bytes(b"edited later")
    with pytest.raises(FileExistsError, match="2008_000001.png was changed after it was written"):
        run(*arguments(source, tmp_path / "out"))
    assert theirs.read_bytes() == b"edited later"


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_run_goes_on_to_the_same_bytes(source: Path, tmp_path: Path, processes: int):
    for number in range(10, 100):
        name = f"2009_{number:06d}"
        for folder, suffix in (
            ("Annotations_Part", ".mat"),
            ("VOCdevkit/VOC2010/JPEGImages", ".jpg"),
            ("VOCdevkit/VOC2012/SegmentationClass", ".png"),
        ):
            os.link(source / folder / f"2008_000001{suffix}", source / folder / f"{name}{suffix}")
    output = tmp_path / "killed"
    command = [
        sys.executable,
        str(TOOL),
        *map(str, arguments(source, output)),
        "clip_to_voc=all",
        f"processes={processes}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal, deadline = output / ITEMS, time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # workers notice that their parent is gone
    num_done = journal.read_bytes().count(b"\n")
    assert num_done < 94 and not json.loads((output / PROVENANCE).read_text())["complete"]
    left = output / "images/train/.2009_000090.jpg.partseg-tmp"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    with journal.open("a") as file:
        file.write('{"name": "2009_000095", "spl')
    run(*arguments(source, output), "clip_to_voc=all")
    run(*arguments(source, tmp_path / "uninterrupted"), "clip_to_voc=all")
    assert tree(output) == tree(tmp_path / "uninterrupted")


def test_unknown_part_name_is_named(source: Path, tmp_path: Path):
    mask = rectangle(5, 5, 20, 20)
    write_mat(source / "Annotations_Part/2008_000003.mat", [("cow", mask, [("wing", mask)])])
    with pytest.raises(ValueError, match="2008_000003.mat: part 'wing' of 'cow'"):
        run(*arguments(source, tmp_path / "out"))
    write_mat(source / "Annotations_Part/2008_000003.mat", [("zebra", mask, [("head", mask)])])
    with pytest.raises(ValueError, match="object 'zebra' is none of the 20 VOC classes"):
        run(*arguments(source, tmp_path / "out"))


def test_damaged_sources_are_all_named(source: Path, tmp_path: Path):
    for path in (source / "Annotations_Part/2008_000001.mat", source / "VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg"):
        path.write_bytes(path.read_bytes()[:-150])
    Image.new("RGB", (50, 50)).save(source / "VOCdevkit/VOC2010/JPEGImages/2008_000003.jpg")
    with pytest.raises(ValueError) as error:
        run(*arguments(source, tmp_path / "out"))
    message = str(error.value)
    assert "3 of 4 items failed" in message and "2008_000001.mat as a Pascal-Part annotation" in message
    assert "2008_000002.jpg" in message and "is 40x60 (rows x columns) but its photo" in message


def test_missing_sources(source: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        run(f"annotations={tmp_path / 'nowhere'}", f"voc={source}", f"output={tmp_path / 'out'}")
    with pytest.raises(FileNotFoundError, match="one directory level off"):
        run(f"annotations={source / 'VOCdevkit'}", f"voc={source}", f"output={tmp_path / 'out'}")
    (source / "VOCdevkit/VOC2012/SegmentationClass/2008_000004.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no VOC segmentation mask: \['2008_000004'\]; use voc_masks"):
        run(*arguments(source, tmp_path / "out"), "clip_to_voc=all")
    run(*arguments(source, tmp_path / "out"), "clip_to_voc=available")
    assert json.loads((tmp_path / "out" / PROVENANCE).read_text())["clipped_to_voc"] == 3
    (source / "VOCdevkit/VOC2010/JPEGImages/2008_000004.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="no photo"):
        run(*arguments(source, tmp_path / "out2"))
    (source / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="val.txt"):
        run(*arguments(source, tmp_path / "out3"))
