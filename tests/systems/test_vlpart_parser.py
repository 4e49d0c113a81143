"""The parser: equal to the authors' at every seam and to literal loops; from photos to labels that a training reads."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from partseg.data.coco_style import coco_style
from partseg.data.mapper import EvalMapper
from partseg.engine.build import build_model
from partseg.engine.checkpoint import Checkpoints
from partseg.engine.run import plain
from partseg.systems.vlpart import parser as parsing
from partseg.systems.vlpart import transfer
from partseg.systems.vlpart.dino import Descriptors, Dino
from partseg.systems.vlpart.parser import Parser, document, load_dino
from partseg.utils.config import compose
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped


def close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=tolerance * scale)


# The authors' numbers -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def numbers(samples):
    return safetensors.torch.load_file(samples.parent / "fixtures" / "vlpart" / "parser.safetensors")


@pytest.fixture(scope="module")
def dino(numbers):
    found = Dino(width=48, depth=3, heads=6, mlp_ratio=2.0, patch_size=8, trained_size=40)
    state = {name.removeprefix("dino."): value for name, value in numbers.items() if name.startswith("dino.")}
    found.net.load_state_dict(state)
    return found


def test_descriptors_are_the_authors(dino, numbers):
    for name in ("query", "base"):
        found = dino.describe(numbers[f"{name}.batch"][0])
        assert list(found.grid) == numbers[f"{name}.grid"].tolist()
        close(found.keys, numbers[f"{name}.key"][0, 0])
        close(found.saliency, numbers[f"{name}.attn"][0])
    close(dino(numbers["input.query_image"]).cls, numbers["query.token"][0, 0, 0])
    for i in range(4):
        close(dino(numbers[f"database.{i}.image_resized"]).cls, numbers[f"database.{i}.token"])


def test_the_transfer_is_the_authors(dino, numbers):
    """Nearest picture, matches, transferred masks and boxes, and what is left after snapping."""
    query, base = (dino.describe(numbers[f"{name}.batch"][0]) for name in ("query", "base"))
    database = torch.stack([numbers[f"database.{i}.token"] for i in range(4)])
    index = transfer.nearest(query.cls, database)
    assert index == int(numbers["database.nearest"])
    match = transfer.matches(query, base)
    assert torch.equal(match, numbers["match_index_query_to_base"])
    masks = numbers[f"database.{index}.part_masks"].bool()
    moved = transfer.transferred(masks, base, query, match, size=(56, 77))
    assert torch.equal(moved, numbers["parts.mask_query_size"].bool())
    boxes = transfer.boxes_around(moved)
    close(boxes - 0.5, numbers["parts.box"])  # theirs lie half a pixel up-left
    detections = numbers["detector_boxes_scaled"]
    found = transfer.snapped(boxes - 0.5, detections)
    close(torch.stack([detections[d] for _, d, _ in found]), numbers["out.boxes"])
    categories = numbers[f"database.{index}.part_category_ids"]
    assert [int(categories[part]) for part, _, _ in found] == numbers["out.category_ids"].tolist()


# Literal loops --------------------------------------------------------------------------------------------------------
def descriptors(rows, columns, seed):
    rng = torch.Generator().manual_seed(seed)
    keys = torch.randn(rows * columns, 6, generator=rng)
    return Descriptors(torch.randn(6, generator=rng), keys, torch.rand(rows * columns, generator=rng), (rows, columns))


def test_matches_are_those_of_a_loop():
    query, base = descriptors(4, 5, 0), descriptors(3, 6, 1)
    expected = []
    for key in query.keys.double():
        cosines = [float(key @ other / key.norm() / other.norm()) for other in base.keys.double()]
        expected.append(int(np.argmax(cosines)))
    assert transfer.matches(query, base).tolist() == expected


def test_transferred_masks_are_those_of_a_loop():
    query, base = descriptors(6, 7, 2), descriptors(5, 4, 3)
    query = replace(query, saliency=query.saliency * 0.2)
    match = transfer.matches(query, base)
    masks = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    found = transfer.transferred(masks, base, query, match, size=(6, 7))
    for mask, moved in zip(masks, found):
        cells = {
            (r, c)
            for r in range(6)
            for c in range(7)
            if mask.flatten()[match[7 * r + c]] and query.saliency[7 * r + c] > 0.05
        }
        assert {tuple(cell) for cell in moved.nonzero().tolist()} == largest(cells)


def largest(cells):
    """The largest piece by flood fill, diagonal steps allowed."""
    best, left = set(), set(cells)
    while left:
        piece, waiting = set(), [min(left)]
        while waiting:
            r, c = waiting.pop()
            if (r, c) in left:
                left.remove((r, c))
                piece.add((r, c))
                waiting += [(r + dr, c + dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1)]
        best = piece if len(piece) > len(best) else best
    return best


def test_parts_are_called_as_the_new_object_calls_them():
    words = Vocabulary.from_mapping({"dog": ["head", "torso", "foot"], "car": ["wheel"]})
    assert transfer.renamed("head", "dog", words) == 0
    assert transfer.renamed("body", "dog", words) == 1
    assert transfer.renamed("paw", "dog", words) == 2
    assert transfer.renamed("wing", "dog", words) is None and transfer.renamed("head", "car", words) is None


def test_parts_that_match_nothing_or_fit_no_box_are_dropped():
    empty = torch.zeros(1, 5, 5, dtype=torch.bool)
    assert transfer.boxes_around(empty).tolist() == [[0, 0, 0, 0]]
    boxes = torch.tensor([[0.0, 0, 0, 0], [0, 0, 10, 10]])
    assert transfer.snapped(boxes, torch.tensor([[8.0, 8, 20, 20]])) == []
    assert transfer.snapped(boxes, torch.zeros(0, 4)) == []
    assert transfer.snapped(boxes, torch.tensor([[0.0, 0, 10, 9]])) == [(1, 0, pytest.approx(0.9))]


# From photos to labels ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two cats with parts and a picture of two, photos of a dog and a cat, a detector without training and DINO."""
    tmp_path = tmp_path_factory.mktemp("world")
    names = shipped("pascal_part_93")
    cat = 94 + names.label_objects.index("cat")
    head, tail = (1 + names.pairs.index(("cat", part)) for part in ("head", "tail"))
    categories = [*(f"{o}:{p}" for o, p in names.pairs), *names.label_objects]
    images, annotations = [], []
    for number, count in ((1, 1), (2, 1), (3, 2)):
        photo = np.random.default_rng(number).integers(0, 255, (64, 80, 3), dtype=np.uint8)
        save(tmp_path / f"data/PascalPart93/images/train/{number}.jpg", photo)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 64, "width": 80})
        for category, box in [(cat, (5, 5, 70, 60))] * count + [(head, (5, 5, 35, 60)), (tail, (40, 5, 70, 60))]:
            left, top, right, bottom = box
            outline = [[left, top, right, top, right, bottom, left, bottom]]
            annotations.append({"image_id": number, "category_id": category, "segmentation": outline})
    content = {"images": images, "annotations": [{"id": i, **a} for i, a in enumerate(annotations, 1)]}
    content["categories"] = [{"id": k, "name": name} for k, name in enumerate(categories, 1)]
    (tmp_path / "data/PascalPart93/annotations_train.json").write_text(json.dumps(content))
    for folder, count in {"n_dog": 3, "n_cat": 1}.items():
        for i in range(count):
            photo = np.random.default_rng(1).integers(0, 255, (64, 80, 3), dtype=np.uint8)
            save(tmp_path / f"photos/{folder}/{folder}_{i}.png", photo)
    config = compose("train", ["experiment=toy_vlpart", "model.image_size=[64,80]"])
    torch.manual_seed(0)
    model = build_model(config)
    optimizer = torch.optim.SGD(model.heads.parameters(), lr=0.1)
    checkpoints = Checkpoints(tmp_path / "base/checkpoints", config=plain(config))
    checkpoints.save(model, optimizer=optimizer, iteration=1, vocabulary=names.seen_subset(), ema=None)
    return tmp_path


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def tool(load, monkeypatch):
    """The tool with a small DINO."""
    module = load("parse_parts")
    monkeypatch.setattr(module, "load_dino", lambda _: Dino(width=48, depth=2, trained_size=40))
    return module


@pytest.fixture
def output(tmp_path):
    return tmp_path / "parsed"


def options(tool, world, output, **more):
    return tool.Options(
        **{
            "ckpt": world / "base",
            "dino": "random",
            "photos": world / "photos",
            "output": output,
            "data_root": world / "data",
            "folders": "{dog: n_dog, cat: n_cat}",
            "short_side": 64,
            "shard_size": 2,
            "device": "cpu",
            **more,
        }
    )


def test_photos_become_labels_that_a_training_reads(world, tool, output, monkeypatch):
    """The detector's boxes are set to where the parts go, so that some are kept; the base objects' come from it."""
    whole = torch.tensor([[0.0, 0, 45, 64], [30, 0, 80, 64], [0, 0, 80, 64]])
    monkeypatch.setattr(Parser, "boxes", lambda self, photo: whole)
    assert tool.main(options(tool, world, output)) == 0
    assert sorted(path.name for path in (output).iterdir()) == [
        "complete.json",
        "export.json",
        "shard-00000.json",
        "shard-00001.json",
    ]
    data = coco_style(
        output,
        "train",
        vocabulary="pascal_part_93",
        images=".",
        annotations="shard-*.json",
        all_seen=True,
        mapper=EvalMapper(instances="annotated"),
    )
    dogs = [i for i, record in enumerate(data.records) if record.file_name.split("/")[-2] == "n_dog"]
    assert len(dogs) == 3
    for sample in (data[i] for i in dogs):
        names = {data.vocabulary.object_parts[label] for label in sample.instances.label.tolist()}
        assert names and names <= {"dog's head", "dog's tail"} and not sample.instances.has_mask.any()
    raw = json.loads((output / "shard-00000.json").read_text())
    raw["annotations"] += json.loads((output / "shard-00001.json").read_text())["annotations"]
    assert all(0.3 < each["score"] <= 1 and each["mask"]["size"] == [64, 80] for each in raw["annotations"])


def test_shards_are_shared_and_not_made_again(world, tool, output):
    assert tool.main(options(tool, world, output, process=1, processes=2)) == 0
    assert not (output / "shard-00000.json").exists() and not (output / "complete.json").exists()
    before = (output / "shard-00001.json").stat().st_mtime_ns
    assert tool.main(options(tool, world, output)) == 0
    assert (output / "complete.json").is_file()
    assert (output / "shard-00001.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds another export"):
        tool.main(options(tool, world, output, shard_size=3))


def test_only_pictures_of_one_object_are_a_base(world, tool):
    model, seen, _ = tool.load_model(world / "base")
    base = tool.catalog.get("pascal_part_93", split="train", data_root=world / "data")
    with torch.inference_mode():
        parser = Parser(model, Dino(width=48, depth=2, trained_size=40), base, seen=seen, short_side=64)
    assert len(parser.base) == 2 and parser.tokens.shape == (2, 48)
    alone = base.subset([2])
    with pytest.raises(ValueError, match="no picture of 'pascal_part_93' shows a single annotated object"):
        Parser(model, Dino(width=48, depth=2, trained_size=40), alone, seen=seen, short_side=64)


def test_a_base_object_keeps_the_detectors_own_parts(world, tool, monkeypatch):
    model, seen, _ = tool.load_model(world / "base")
    base = tool.catalog.get("pascal_part_93", split="train", data_root=world / "data")
    monkeypatch.setattr(parsing, "OWN_SCORE", 0.0)
    with torch.inference_mode():
        parser = Parser(model, Dino(width=48, depth=2, trained_size=40), base, seen=seen, short_side=64)
        photo = Image.open(world / "photos/n_cat/n_cat_0.png")
        found = parser(photo, owner="cat", vocabulary=shipped("pascal_part_93"))
    expected = {k for k, (owner, _) in enumerate(shipped("pascal_part_93").pairs) if owner == "cat"}
    assert {part.label for part in found} <= expected
    content = document([], shipped("pascal_part_93"), origin={})
    assert content["annotations"] == [] and len(content["categories"]) == 93


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"process": 2, "processes": 2}, r"process=2 is not in 0\.\.1"),
        ({"shard_size": 0}, "shard_size=0 starts at 1"),
        ({"folders": "{unicorn: n_dog}"}, r"folders \['unicorn'\] are no objects"),
        ({"photos": "nowhere"}, "no folder nowhere"),
    ],
)
def test_wrong_arguments_are_refused(world, tool, output, change, message):
    if "photos" in change:
        change = {"photos": Path(change["photos"])}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tool.main(options(tool, world, output, **change))
    assert not (output).exists()


def test_weights_that_are_no_dino_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights dino=nowhere"):
        load_dino(Path("nowhere"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"is no DINO ViT-S/8: it lacks \['cls_token'"):
        load_dino(tmp_path / "a.pt")
