"""The synthetic set: layout, determinism, completeness, and that nothing half-made or foreign is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from partseg.vocabulary.shipped import shipped
from toy_world import scene, writer
from toy_world.palette import Palette
from toy_world.scene import BUILDERS, SceneArtist
from toy_world.shapes import NO_LABEL, Canvas, Paint, Shape, box, ellipse
from toy_world.writer import ToyOptions, is_complete, stem_of, write_toy

DRAW = Path(writer.__file__).parents[1] / "draw_toy.py"
VOCABULARY = shipped("pascal_part_116")
SMALL = ToyOptions(num_train=16, num_val=3, size=64)


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("set") / "Toy part set"
    assert write_toy(root, SMALL)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_layout_is_that_of_the_real_set(toy_root):
    for split, count in (("train", 16), ("val", 3)):
        stems = {path.stem for path in (toy_root / "images" / split).glob("*.jpg")}
        assert stems == {stem_of(split, index) for index in range(count)}
        for level in ("part", "obj"):
            folder = toy_root / f"annotations_detectron2_{level}" / split
            assert {path.stem for path in folder.glob("*.png")} == stems
            table = json.loads(
                (folder.parent.parent / "annotations_detectron2_part" / f"{split}_{level}_label_count.json").read_text()
            )
            for stem in stems:
                label = np.asarray(Image.open(folder / f"{stem}.png"))
                assert label.dtype == np.uint8 and label.shape == (64, 64)
                assert table[f"{stem}.png"] == [int(i) for i in np.unique(label) if i != NO_LABEL]
    shots = json.loads((toy_root / "train_16shot.json").read_text())
    assert shots and all((toy_root.parent / entry["file_name"]).is_file() for entry in shots)
    assert json.loads((toy_root / "provenance.json").read_text())["synthetic"] is True
    assert not list(toy_root.parent.glob(".*unfinished"))


def test_same_seed_same_bytes_other_seed_other_bytes(toy_root, tmp_path):
    write_toy(tmp_path / "Toy part set", SMALL)
    assert contents(tmp_path / "Toy part set") == contents(toy_root)
    write_toy(tmp_path / "other", ToyOptions(num_train=1, num_val=1, size=64, seed=1))
    first = f"images/train/{stem_of('train', 0)}.jpg"
    assert contents(tmp_path / "other")[first] != contents(toy_root)[first]


def test_every_name_is_drawn_and_no_part_leaves_its_object():
    artist = SceneArtist(VOCABULARY, size=128)
    seen: set[int] = set()
    objects: set[int] = set()
    for index in range(400):
        picture = artist.draw(np.random.default_rng(index), subject=VOCABULARY.objects[index % 16])
        labelled = picture.part != NO_LABEL
        owner = VOCABULARY.object_of[picture.part[labelled]]
        assert (VOCABULARY.label_object_lut[picture.object[labelled]] == owner).all()
        seen |= set(np.unique(picture.part[labelled]).tolist())
        objects |= set(np.unique(picture.object).tolist())
        assert (picture.object == NO_LABEL).any(), "every picture shows some background"
    missing = [VOCABULARY.object_parts[k] for k in range(116) if k not in seen]
    assert missing == []
    assert set(range(20)) <= objects


def test_builders_use_the_real_names_only():
    assert set(BUILDERS) == set(VOCABULARY.label_objects)
    rng = np.random.default_rng(0)
    for name, builder in BUILDERS.items():
        allowed = {part for obj, part in VOCABULARY.pairs if obj == name}
        used = {shape.part for _ in range(30) for shape in builder(rng)} - {None}
        assert used == allowed, name


def test_small_parts_survive_at_the_default_size():
    artist = SceneArtist(VOCABULARY, size=160)
    eye = VOCABULARY.object_parts.index("cat's eye")
    counts = [int((artist.draw(np.random.default_rng(index), subject="cat").part == eye).sum()) for index in range(12)]
    assert np.median(counts) >= 6


def test_a_part_is_tinted_alike_on_every_object():
    palette = Palette(VOCABULARY)

    def colour(part: str | None, obj: str, own: tuple[float, float, float]) -> np.ndarray:
        shape = Shape(box(0, 0, 1, 1), Paint(own), part)
        return np.array(palette.tint(shape, obj).paint.color)

    grey = (128.0, 128.0, 128.0)
    heads = [colour("head", name, grey) for name in ("dog", "cat", "horse")]
    other = colour("tail", "dog", grey)
    between_objects = max(np.abs(a - b).max() for a in heads for b in heads)
    assert 0 < between_objects < np.abs(heads[0] - other).max()
    assert np.allclose(colour("head", "dog", (228.0, 128.0, 128.0)) - heads[0], (10, 0, 0))
    assert np.array_equal(colour(None, "dog", grey), grey)


def test_training_pictures_are_of_seen_objects_as_often_as_they_have_parts(monkeypatch, tmp_path):
    drawn: list[str] = []
    draw = SceneArtist.draw

    def noted(self: SceneArtist, rng: np.random.Generator, *, subject: str | None = None) -> object:
        drawn.append(str(subject))
        return draw(self, rng, subject=subject)

    monkeypatch.setattr(SceneArtist, "draw", noted)
    num_seen = int(VOCABULARY.seen.sum())
    write_toy(tmp_path / "toy", ToyOptions(num_train=num_seen, num_val=len(VOCABULARY.objects), size=32))
    assert drawn[num_seen:] == list(VOCABULARY.objects)
    seen = [name for name in VOCABULARY.objects if name not in VOCABULARY.unseen_objects]
    assert drawn[: len(seen)] == seen
    assert Counter(drawn[:num_seen]) == Counter(obj for obj, _ in VOCABULARY.pairs if obj in seen)


def test_small_parts_grow_about_their_middle_and_large_ones_stay():
    paint = Paint((0, 0, 0))
    eye, pupil = Shape(box(4, 6, 5, 7), paint, "eye"), Shape(box(4.5, 6.5, 4.6, 6.6), paint, "eye")
    tyre, spoke = Shape(box(0, 0, 2, 2), paint, "wheel"), Shape(box(0, 0, 1, 0.1), paint, "wheel")
    frame = Shape(box(0, 0, 0.1, 0.1), paint)
    grown = scene._grown([eye, pupil, tyre, spoke, frame], least=2.25)
    assert np.allclose((grown[0].points.min(0) + grown[0].points.max(0)) / 2, (4.5, 6.5))
    sizes = [np.ptp(after.points, 0) / np.ptp(before.points, 0) for before, after in zip([eye, pupil], grown)]
    assert np.allclose(sizes, 1.5), "all shapes of a part by the same factor"
    for before, after in zip([tyre, spoke, frame], grown[2:]):
        assert np.array_equal(before.points, after.points)
    assert np.allclose(np.ptp(scene._grown([eye], least=100.0)[0].points, 0), scene._MOST_GROWTH)


def test_backdrops_are_paler_than_objects():
    spread: dict[bool, list[float]] = {True: [], False: []}
    artist = SceneArtist(VOCABULARY, size=64)
    for index in range(16):
        picture = artist.draw(np.random.default_rng(index), subject=VOCABULARY.objects[index])
        colourful = np.ptp(picture.image.astype(float), axis=-1)
        for labelled in (True, False):
            spread[labelled].append(float(np.median(colourful[(picture.part != NO_LABEL) == labelled])))
    assert np.median(spread[True]) > 2 * np.median(spread[False])


def test_canvas_labels_are_where_the_paint_is():
    canvas = Canvas(32, np.random.default_rng(0))
    canvas.paint(Shape(box(4, 4, 20, 20), Paint((200, 0, 0)), edge=0.0), part_label=3, object_label=1)
    canvas.paint(Shape(ellipse(20, 20, 5, 5), Paint((0, 0, 200)), edge=0.0), part_label=NO_LABEL, object_label=2)
    assert (canvas.part == 3).sum() + ((canvas.object == 2)[4:20, 4:20]).sum() == 256
    assert canvas.image[6, 6, 0] > 100 and canvas.image[20, 20, 2] > 100
    assert canvas.part[20, 20] == NO_LABEL and canvas.object[20, 20] == 2
    canvas.paint(Shape(box(-50, -50, -40, -40), Paint((0, 0, 0))), part_label=9)
    assert not (canvas.part == 9).any()


def test_a_complete_set_is_kept_and_an_incomplete_one_is_drawn_again(tmp_path):
    options = ToyOptions(num_train=2, num_val=1, size=32)
    root = tmp_path / "toy"
    assert write_toy(root, options)
    before = contents(root)
    assert not write_toy(root, options)
    (root / "images" / "val" / f"{stem_of('val', 0)}.jpg").unlink()
    assert not is_complete(root, options)
    assert write_toy(root, options)
    assert contents(root) == before


def test_other_options_and_foreign_folders_are_left_alone(tmp_path):
    root = tmp_path / "toy"
    write_toy(root, ToyOptions(num_train=1, num_val=1, size=32))
    before = contents(root)
    with pytest.raises(FileExistsError, match="other options.*another root="):
        write_toy(root, ToyOptions(num_train=1, num_val=1, size=32, seed=5))
    assert contents(root) == before
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a toy set"):
        write_toy(foreign, SMALL)
    assert contents(foreign) == {"thesis.txt": b"years of work"}


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_toy(tmp_path / "toy", SMALL, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [{"num_train": 0}, {"num_val": 0}, {"size": 8}, {"seed": -1}])
def test_options_say_what_is_allowed(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be at least"):
        ToyOptions(**bad)


def test_command_line(tmp_path):
    command = [sys.executable, str(DRAW), f"root={tmp_path / 'toy'}", "num_train=2"]
    command += ["num_val=1", "size=32"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 training and 1 validation images, written" in first.stdout
    refused = subprocess.run([*command, "seed=3"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "give another root=" in refused.stderr
