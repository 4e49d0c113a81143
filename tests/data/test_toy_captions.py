"""What the synthetic world's CLIP reads: names and pictures, no mask; and that the shipped weights know the names."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

import train_toy_clip
from partseg.backbones.clip_layouts import OPEN_CLIP
from partseg.backbones.clip_vit import ClipBackbone, clip_config
from partseg.vocabulary.shipped import shipped
from partseg.weights.sources import SHIPPED, read_weights
from toy_world import captions, writer
from toy_world.captions import FILES, SIDE, Shown, caption, draw_crops, read_crops, write_crops

WORDS = shipped("pascal_part_116")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crops")
    write_crops(folder, draw_crops(WORDS, seed=5, stream="val", count=60))
    return folder


def test_the_tower_data_hold_pictures_and_names_and_no_label_map(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    images = np.load(folder / "images.npy", allow_pickle=False)
    assert images.dtype == np.uint8 and images.shape[1:] == (SIDE, SIDE, 3)
    # photographs with sensor noise: a label map painted as a picture would have few colours
    assert min(len(np.unique(image.reshape(-1, 3), axis=0)) for image in images) > 500
    names = {*WORDS.label_objects, *WORDS.parts}
    for row in json.loads((folder / "shown.json").read_text()):
        assert set(row) == {"kind", "objects", "parts"} and row["kind"] in ("scene", "object", "part")
        assert {*row["objects"], *(part for parts in row["parts"] for part in parts)} <= names


def test_the_drawings_are_none_that_segmentation_trains_on_or_is_scored_on() -> None:
    assert not set(captions.STREAMS.values()) & set(range(len(writer.SPLITS)))
    assert len(set(captions.STREAMS.values())) == len(captions.STREAMS)


def test_crops_come_back_and_are_the_same_for_the_same_seed(folder: Path) -> None:
    images, shown = read_crops(folder)
    again = list(draw_crops(WORDS, seed=5, stream="val", count=60))
    assert shown == [each for _, each in again]
    assert (images == np.stack([image for image, _ in again])).all()
    assert {name for each in shown for name in each.objects} == set(WORDS.label_objects)
    assert {each.kind for each in shown} == {"scene", "object", "part"}


@pytest.mark.parametrize(
    ("shown", "meanings"),
    [
        (Shown("part", ("dog",), (("head",),)), {("part", "head"), ("object part", "dog", "head")}),
        (Shown("object", ("dog",), (("head",),)), {("objects", "dog"), ("object with", "dog", "head")}),
        (Shown("scene", ("car", "dog"), (("wheel",), ("head",))), {("objects", "car", "dog")}),
    ],
)
def test_captions_say_what_is_shown_and_nothing_else(shown: Shown, meanings: set[tuple[str, ...]]) -> None:
    rng = np.random.default_rng(0)
    said = [caption(shown, rng) for _ in range(60)]
    assert {meaning for _, meaning in said} == meanings
    for text, meaning in said:
        assert all(name in text for name in meaning[1:])
        others = {*WORDS.label_objects, *WORDS.parts} - {*shown.objects, *(p for parts in shown.parts for p in parts)}
        assert not {name for name in others if name in text.replace(",", " ").split()}


def test_captions_of_one_meaning_are_no_negatives() -> None:
    same = train_toy_clip._same([("objects", "dog"), ("part", "head"), ("objects", "dog")])
    assert same.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_a_short_training_writes_weights_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = train_toy_clip.Options(out=tmp_path, name="partseg-toy", pictures=40, steps=4, batch=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_toy_clip, "HELD_OUT", 40)
        assert train_toy_clip.main(options) == 0
    digest = hashlib.sha256((tmp_path / "weights.npz").read_bytes()).hexdigest()
    assert digest in capsys.readouterr().out
    assert set(json.loads((tmp_path / "zero_shot.json").read_text())) == {
        f"{kind}_{split}" for kind in ("object", "part") for split in ("seen", "unseen")
    }
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == 4
    backbone = ClipBackbone("partseg-toy", pretrained=str(tmp_path / "weights.npz"), feature_blocks=(3,))
    table = backbone.clip.token_embedding.weight
    assert (table[backbone.tokenizer.encode("dog")] != 0).all()
    assert (table[backbone.tokenizer.encode("zebra")] == 0).all(), "a word that was never read says nothing"


@pytest.mark.parametrize("name", ["partseg-toy", "partseg-tiny-rn"])
def test_shipped_weights_are_those_of_the_readme_and_name_unseen_objects(name: str) -> None:
    weights = Path(str(resources.files("partseg.backbones"))) / "weights"
    content = (weights / f"{name}.npz").read_bytes()
    assert hashlib.sha256(content).hexdigest() in (weights / "README.md").read_text() and len(content) < 5e6
    clip = open_clip.CLIP(**clip_config(name))
    found = read_weights(SHIPPED, layouts=(OPEN_CLIP,), clip_name=name)
    assert found.quick_gelu
    clip.load_state_dict(found.state)
    images, shown = zip(*draw_crops(WORDS, seed=9, stream="val", count=60))
    accuracy = train_toy_clip.zero_shot(clip, torch.from_numpy(np.stack(images)), shown, WORDS)
    assert accuracy["object_unseen"] >= 80 and accuracy["part_unseen"] >= 50


def test_no_weights_are_shipped_for_other_towers() -> None:
    with pytest.raises(
        ValueError,
        match=r"ships no 'synthetic' weights for 'partseg-tiny-16'; it does for partseg-tiny-rn, partseg-toy",
    ):
        ClipBackbone("partseg-tiny-16", pretrained=SHIPPED, feature_blocks=(3,))
