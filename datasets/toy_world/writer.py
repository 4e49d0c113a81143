"""Writes the toy set to disk in the layout of Pascal-Part-116, so that the real set's loader reads it unchanged.

images/{train,val}/*.jpg                            annotations_detectron2_obj/{train,val}/*.png
annotations_detectron2_part/{train,val}/*.png       annotations_detectron2_part/*_label_count.json
train_16shot.json                                   provenance.json (says that the set is synthetic)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped
from toy_world.scene import SceneArtist
from toy_world.shapes import NO_LABEL

VERSION = 5
"""Raised whenever the same options give other pictures; a set of another version is not reused."""

SPLITS = ("train", "val")
SHOTS = 16

_PART_DIR, _OBJECT_DIR = "annotations_detectron2_part", "annotations_detectron2_obj"


@dataclass(frozen=True)
class ToyOptions:
    """All that the pixels of the set depend on."""

    num_train: int = 800
    num_val: int = 100
    size: int = 160
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_train", 1), ("num_val", 1), ("size", 32), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def count(self, split: str) -> int:
        """Number of images of the split."""
        return self.num_train if split == "train" else self.num_val


@dataclass(frozen=True)
class _Written:
    """What one written image holds: its split, its stem and the ids in its label files."""

    split: str
    stem: str
    parts: tuple[int, ...]
    objects: tuple[int, ...]


def write_toy(
    root: str | Path,
    options: ToyOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Draw the set into `root` unless a complete one with these options is there; returns whether anything was drawn.

    The set is drawn beside `root` and renamed when it is complete, so an interrupted run leaves nothing behind.
    Raises FileExistsError when `root` holds anything that is not a toy set with these options.
    """
    root, options = Path(root), options or ToyOptions()
    if root.exists():
        if is_complete(root, options):
            return False
        _refuse_foreign(root, options)
    unfinished = root.with_name(f".{root.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _draw_all(unfinished, options, progress=progress, name=root.name)
        if root.exists():
            shutil.rmtree(root)
        unfinished.replace(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def is_complete(root: str | Path, options: ToyOptions) -> bool:
    """Whether `root` holds a toy set of this version with these options, no file missing."""
    root = Path(root)
    if _options_of(root) != _provenance_options(options):
        return False
    folders = ("images", _PART_DIR, _OBJECT_DIR)
    return all(
        sum(1 for _ in (root / folder / split).glob("*")) == options.count(split)
        for folder in folders
        for split in SPLITS
    )


def stem_of(split: str, index: int) -> str:
    """File name without suffix."""
    return f"toy_{split}_{index:05d}"


def _provenance_options(options: ToyOptions) -> dict[str, object]:
    return {"version": VERSION, **asdict(options)}


def _options_of(root: Path) -> dict[str, object] | None:
    """The options written in the set's provenance; None where there is no toy set."""
    path = root / "provenance.json"
    if not path.is_file():
        return None
    try:
        provenance = json.loads(path.read_text())
    except json.JSONDecodeError:
        return None
    return provenance.get("options") if provenance.get("synthetic") else None


def _refuse_foreign(root: Path, options: ToyOptions) -> None:
    """Only an incomplete toy set with the same options may be replaced."""
    found = _options_of(root)
    if found == _provenance_options(options):
        return
    what = "files that are not a toy set" if found is None else f"a toy set with other options, {found}"
    raise FileExistsError(f"{root} holds {what}; give another root= or remove that folder yourself")


def _draw_all(folder: Path, options: ToyOptions, *, progress: Callable[[int, int], None] | None, name: str) -> None:
    for part in ("images", _PART_DIR, _OBJECT_DIR):
        for split in SPLITS:
            (folder / part / split).mkdir(parents=True)
    vocabulary = shipped("pascal_part_116")
    artist = SceneArtist(vocabulary, size=options.size)
    written: list[_Written] = []
    for split in SPLITS:
        subjects = _subjects(vocabulary, split)
        for index in range(options.count(split)):
            written.append(_draw_one(folder, artist, subjects, seed=options.seed, split=split, index=index))
            if progress is not None:
                progress(len(written), options.num_train + options.num_val)
    for split in SPLITS:
        entries = [entry for entry in written if entry.split == split]
        for level in ("obj", "part"):
            counts = {f"{e.stem}.png": list(e.objects if level == "obj" else e.parts) for e in entries}
            _write_json(folder / _PART_DIR / f"{split}_{level}_label_count.json", counts)
    shots = _few_shot([entry for entry in written if entry.split == "train"])
    _write_json(folder / "train_16shot.json", [{"file_name": f"{name}/images/train/{stem}.jpg"} for stem in shots])
    _write_json(folder / "provenance.json", _provenance(options, written, vocabulary))


def _subjects(vocabulary: Vocabulary, split: str) -> Sequence[str]:
    """What the pictures show in turn: every object in validation; in training seen ones, each as often as it has parts.

    Training hides the labels of unseen objects, so pictures of them would teach nothing; they stand beside others.
    """
    if split != "train":
        return vocabulary.objects
    seen = [name for name in vocabulary.objects if name not in vocabulary.unseen_objects]
    counts = {name: len(vocabulary.parts_of_object(vocabulary.object_id(name))) for name in seen}
    return [name for turn in range(max(counts.values())) for name in seen if turn < counts[name]]


def _draw_one(
    folder: Path, artist: SceneArtist, subjects: Sequence[str], *, seed: int, split: str, index: int
) -> _Written:
    """Draw one image; its pixels depend on seed, size, split and index alone."""
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    picture = artist.draw(rng, subject=subjects[index % len(subjects)])
    stem = stem_of(split, index)
    Image.fromarray(picture.image).save(folder / "images" / split / f"{stem}.jpg", quality=92, subsampling=0)
    Image.fromarray(picture.part).save(folder / _PART_DIR / split / f"{stem}.png")
    Image.fromarray(picture.object).save(folder / _OBJECT_DIR / split / f"{stem}.png")
    return _Written(split, stem, _ids(picture.part), _ids(picture.object))


def _ids(labels: np.ndarray) -> tuple[int, ...]:
    return tuple(int(label) for label in np.unique(labels) if label != NO_LABEL)


def _few_shot(entries: list[_Written]) -> list[str]:
    """Stems of the images that a greedy pass needs to show every object-part up to SHOTS times."""
    shown: dict[int, int] = {}
    chosen = []
    for entry in entries:
        if any(shown.get(part, 0) < SHOTS for part in entry.parts):
            chosen.append(entry.stem)
            for part in entry.parts:
                shown[part] = shown.get(part, 0) + 1
    return chosen


def _provenance(options: ToyOptions, written: list[_Written], vocabulary: Vocabulary) -> dict[str, object]:
    images_with = {
        split: {
            name: sum(1 for entry in written if entry.split == split and index in entry.parts)
            for index, name in enumerate(vocabulary.object_parts)
        }
        for split in SPLITS
    }
    return {
        "synthetic": True,
        "note": "Drawn by datasets/draw_toy.py. Scores on it say nothing about Pascal-Part-116.",
        "options": _provenance_options(options),
        "images": {split: options.count(split) for split in SPLITS},
        "images_per_object_part": images_with,
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
