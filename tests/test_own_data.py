"""docs/own_data.md as a user follows it, and what is said when own data are wrong."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import partseg
from partseg.data import catalog
from partseg.data.coco_style import words_of
from partseg.data.folder import folder
from partseg.data.inspect import inspect
from partseg.engine.checkpoint import load
from partseg.evaluation import results
from partseg.labels import IGNORE_LABEL

PAGE = Path(__file__).parents[1] / "docs" / "own_data.md"
VALUES = [0, 1, 2, 3, 11, 12]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Ten photos of coloured rectangles with label PNGs, the YAML files of the page, and the same as COCO JSON."""
    place = tmp_path_factory.mktemp("own")
    for name, content in re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE.read_text(), re.S):
        (place / name).write_text(content)
    rng = np.random.default_rng(0)
    for root in ("my_data", "my_coco"):
        (place / root / "images").mkdir(parents=True)
    (place / "my_data" / "labels").mkdir()
    names = yaml.safe_load((place / "names.yaml").read_text())
    categories = [{"id": 1, "name": "head", "supercategory": "dog"}]
    categories += [{"id": v, "name": names[v]} for v in VALUES[2:]]
    coco = {"images": [], "annotations": [], "categories": categories}
    for i in range(10):
        label = np.zeros((40, 60), np.uint8)
        for number, value in enumerate(VALUES[1:]):
            top, left = rng.integers(0, 20, 2)
            label[top : top + 12, 10 * number + left // 4 : 10 * number + left // 4 + 6] = value
            box = [10 * number + int(left) // 4, int(top), 6, 12]
            corners = [box[0], box[1], box[0] + 6, box[1], box[0] + 6, box[1] + 12, box[0], box[1] + 12]
            coco["annotations"].append(
                {"id": 10 * i + number + 1, "image_id": i, "category_id": value, "segmentation": [corners], "bbox": box}
            )
        photo = Image.fromarray(np.stack([20 * label, 255 - 20 * label, label], -1).astype(np.uint8))
        for root in ("my_data", "my_coco"):
            photo.save(place / root / "images" / f"p{i}.jpg")
        Image.fromarray(label).save(place / "my_data" / "labels" / f"p{i}.png")
        coco["images"].append({"id": i, "file_name": f"p{i}.jpg", "height": 40, "width": 60})
    (place / "my_coco" / "parts.json").write_text(json.dumps(coco))
    return place


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_page_runs_as_written(place):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in [*commands(), next(c for c in commands() if c[1] == "train")]:
        full = [sys.executable, "-m", "partseg", *command[1:]]
        done = subprocess.run(full, cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr}"
    run = place / "output" / "mine"
    assert results.read(run)["dataset"] == results.read(run)["dataset"] | {"name": "folder", "split": "val"}
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert set(best) and (run / "report.html").is_file() and (place / "sheet.png").is_file()
    assert len(list((place / "out").glob("*_labels.png"))) == 10
    assert load(run)["iteration"] == 6 and not load(run)["synthetic"]
    assert partseg.load(run, "cpu").about.caution == ""


def test_the_command_for_the_real_start_is_accepted(place, monkeypatch):
    from partseg.utils.config import compose

    line = re.search(r"```text\npartseg train (.*?)\n```", PAGE.read_text(), re.S)[1]
    monkeypatch.chdir(place)
    assert compose("train", [*shlex.split(line), "+dataset.unseen_objects=[car]"]).init_from


def test_labels_are_those_of_the_names_file(place):
    words, names = str(place / "words.yaml"), str(place / "names.yaml")
    settings = {"vocabulary": words, "names": names}
    splits = [folder(place / "my_data", split, **settings) for split in ("train", "val", "all")]
    assert [len(each) for each in splits] == [8, 2, 10]
    assert {r.image_id for r in splits[0].records} | {r.image_id for r in splits[1].records} == {
        r.image_id for r in splits[2].records
    }
    sample = folder(place / "my_data", "val", **settings)[0]
    stored = np.asarray(Image.open(place / "my_data" / "labels" / f"{sample.name}.png"))
    for value, label in zip(VALUES, (IGNORE_LABEL, 0, 1, 2, 3, 4)):
        assert (sample.object_part.numpy()[stored == value] == label).all()
    same = catalog.get("coco_style", root=place / "my_coco", vocabulary=words, annotations="parts.json", val_share=0.2)
    assert [record.image_id for record in same.records] == [r.image_id for r in splits[1].records] or len(same) == 2


def test_a_coco_file_needs_nothing_else(place):
    """The file's own names, one of them a supercategory's; the same pixels as the label PNGs of the same photos."""
    path = place / "my_coco" / "parts.json"
    vocabulary = yaml.safe_load((place / "words.yaml").read_text())
    data = {split: catalog.get("coco", json=path, split=split) for split in ("train", "val")}
    assert [len(each) for each in data.values()] == [8, 2]
    words = data["val"].label_vocabulary
    assert words.pairs == tuple((owner, part) for owner, parts in vocabulary.items() for part in parts)
    sample = data["val"][0]
    stored = np.asarray(Image.open(place / "my_data" / "labels" / f"{sample.name}.png"))
    for value, label in zip(VALUES[1:], range(5)):
        assert (sample.object_part.numpy()[stored == value] == label).all()
    report = inspect("coco", splits=("val",), settings={"json": str(path)})
    assert report.splits["val"].images == 2 and not report.changes_score


def test_a_coco_file_without_parts_says_how_they_are_called(place, tmp_path):
    data = json.loads((place / "my_coco" / "parts.json").read_text())
    for category in data["categories"]:
        category.update(name=f"thing {category['id']}", supercategory="none")
    (tmp_path / "parts.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r'parts.json: no category names a part. Call them "dog:head"'):
        catalog.get("coco", json=tmp_path / "parts.json")
    del data["categories"]
    (tmp_path / "parts.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"parts.json has no categories: give dataset.vocabulary="):
        catalog.get("coco", json=tmp_path / "parts.json")
    with pytest.raises(
        ValueError, match=r"parts.json: annotation 1 has category_id 1, which the file's categories lack"
    ):
        catalog.get("coco", json=tmp_path / "parts.json", vocabulary=str(place / "words.yaml"))
    with pytest.raises(ValueError, match="data set 'coco' needs json=<the file of its labels>"):
        inspect("coco")


@pytest.mark.parametrize("spelling", ["{0} {1}", "{0}'s {1}", "{0}:{1}"])
def test_parts_are_found_in_every_spelling(spelling, tmp_path):
    names = [spelling.format("polar bear", "head"), "polar bear", "bear", spelling.format("bear", "left ear")]
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    words = words_of([(tmp_path, {"categories": categories})], name="mine")
    assert words.pairs == (("polar bear", "head"), ("bear", "left ear"))
    assert words.label_objects == ("polar bear", "bear")


def copied(place, tmp_path):
    shutil.copytree(place / "my_data", tmp_path / "my_data")
    return tmp_path / "my_data", {"vocabulary": str(place / "words.yaml"), "names": str(place / "names.yaml")}


def test_inspect_names_the_bad_files(place, tmp_path):
    root, settings = copied(place, tmp_path)
    Image.new("L", (5, 5)).save(root / "labels" / "p0.png")
    Image.fromarray(np.full((40, 60), 77, np.uint8)).save(root / "labels" / "p1.png")
    Image.fromarray(np.full((40, 60), 300, np.uint16)).save(root / "labels" / "p2.png")
    (root / "images" / "p3.jpg").write_bytes(b"no picture")
    report = inspect("folder", root, splits=("train", "val"), settings=settings)
    text = "\n".join(name for finding in report.findings for name in finding.names)
    assert "p0.png is (5, 5)" in text and "p1.png holds [77], which the names file does not name" in text
    assert "p2.png holds [300]" in text and "p3.jpg" in text


def test_mistakes_are_named(place, tmp_path):
    root, settings = copied(place, tmp_path)
    with pytest.raises(ValueError, match="needs root="):
        inspect("folder")
    (root / "labels" / "p4.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 8 photos have no label: .*p4.png|1 of 2 photos have no label"):
        for split in ("train", "val"):
            folder(root, split, **settings)
    for content, words in (
        ("1: dog:nose", "'1: dog:nose'.*no object-parts of vocabulary"),
        ("dog:head: 1", "must map values"),
        ("1: dog:head\n2: dog head", "several values"),
    ):
        (tmp_path / "names.yaml").write_text(content)
        with pytest.raises(ValueError, match=words):
            folder(root, "all", vocabulary=settings["vocabulary"], names=str(tmp_path / "names.yaml"))
    with pytest.raises(FileNotFoundError, match="no names file"):
        folder(root, "all", vocabulary=settings["vocabulary"], names="nowhere.yaml")
    with pytest.raises(ValueError, match="split 'test' is not one of train, val, all"):
        folder(root, "test", **settings)
    (tmp_path / "photos").mkdir()
    with pytest.raises(FileNotFoundError, match="names=.*there is no folder"):
        folder(tmp_path / "photos", "all", **settings)
