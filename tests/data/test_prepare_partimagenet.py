"""The index of PartImageNet-40 is written beside the data, and nothing else changes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_partimagenet
from converters.conversion import ITEMS, PROVENANCE
from partseg.data.partimagenet import INDEX_FILE, partimagenet_40
from partseg.utils.arguments import parse

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
TIGER, IMPALA, OTHER = "n02129604", "n02422699", "n01484850"


def run(root: Path, *more: str) -> None:
    prepare_partimagenet.main(parse(prepare_partimagenet.Options, [f"partimagenet={root}", "processes=1", *more]))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two splits with a seen, an unseen and a foreign class; the second tiger has only broken annotations."""
    root = tmp_path / "part data" / "PartImageNet"
    for split in ("train", "val"):
        names = [f"{TIGER}_1", f"{TIGER}_2", f"{IMPALA}_7", f"{OTHER}_3"]
        folder = root / "images" / split
        folder.mkdir(parents=True)
        for name in names:
            Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / f"{name}.JPEG")
        images = [{"id": i, "file_name": f"{n}.JPEG", "height": 20, "width": 30} for i, n in enumerate(names)]
        annotations = [
            {"id": 0, "image_id": 0, "category_id": 0, "segmentation": SQUARE, "area": 100, "iscrowd": 0},
            {"id": 1, "image_id": 1, "category_id": 0, "segmentation": [[1, 2]], "area": 3, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": SQUARE, "area": 9, "iscrowd": 1},
            {"id": 3, "image_id": 2, "category_id": 3, "segmentation": SQUARE, "area": 100, "iscrowd": 0},
        ]
        (root / "annotations" / split).mkdir(parents=True)
        content = {"images": images, "annotations": annotations, "categories": []}
        (root / "annotations" / split / f"{split}.json").write_text(json.dumps(content))
    return root


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_index_selects_and_touches_nothing(data: Path):
    before, without = files(data), partimagenet_40(data, "val").manifest_hash
    run(data)
    after = files(data)
    assert set(after) - set(before) == {INDEX_FILE, PROVENANCE, ITEMS}
    assert {name: after[name] for name in before} == before
    index = json.loads(after[INDEX_FILE])
    names = [f"{TIGER}_1.JPEG", f"{TIGER}_2.JPEG", f"{IMPALA}_7.JPEG"]
    assert index == {"train": names, "val": names}
    provenance = json.loads(after[PROVENANCE])
    assert provenance["comparable_with_benchmark"] and provenance["images"] == {"train": 3, "val": 3}
    assert provenance["images_per_class"]["val"]["object"]["tiger"] == 2
    assert provenance["annotations_left_out_when_loading"]["val"]["crowd"] == 1
    assert provenance["annotations_left_out_when_loading"]["val"]["image_without_annotations"] == 1
    assert partimagenet_40(data, "val").manifest_hash == without
    assert [r.image_id for r in partimagenet_40(data, "train").records] == [f"{TIGER}_1"]
    run(data)
    assert files(data) == after


def test_bad_input_is_named(data: Path, tmp_path: Path):
    photo = data / f"images/val/{TIGER}_1.JPEG"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=f"1 of 6 items failed(.|\n)*{TIGER}_1.JPEG"):
        run(data)
    Image.new("RGB", (9, 9)).save(photo)
    with pytest.raises(ValueError, match="rows x columns"):
        run(data)
    photo.unlink()
    with pytest.raises(FileNotFoundError, match=f"{TIGER}_1"):
        run(data)
    assert not (data / INDEX_FILE).exists()
    photo.write_bytes(whole)
    (data / INDEX_FILE).write_text('{"train": [], "val": ["mine"]}')
    with pytest.raises(FileExistsError, match=INDEX_FILE):
        run(data)
    assert "mine" in (data / INDEX_FILE).read_text()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        run(tmp_path / "nowhere")
