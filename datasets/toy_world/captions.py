"""What the synthetic world's CLIP learns from: crops of drawings with the names of what they show, and nothing else.

Captions are such as CLIP meets: a scene by its objects, an object alone or with some of its parts, a part close up with
its object. The drawings are none of those that segmentation trains on or is scored on, and no mask leaves this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from partseg.vocabulary.names import Vocabulary
from toy_world.scene import Picture, SceneArtist

SIDE = 72
"""Side of a stored crop in pixels: a little more than the 64 that the tower reads, for shifts."""
STREAMS = {"train": 2, "val": 3}
"""Where the generators of these drawings start; 0 and 1 are the drawings of the segmentation set (writer.SPLITS)."""
FILES = ("images.npy", "shown.json")

_SIZE = 160
_LEAST_OBJECT, _LEAST_PART, _LEAST_SIDE = 300, 30, 28
_PART_CROPS = (3, 1)
"""Close-ups of the subject's parts and of every other object's."""

Meaning = tuple[str, ...]
"""What a caption says, whatever its words: two captions of one meaning are no negatives of each other."""


@dataclass(frozen=True)
class Shown:
    """What a crop shows: its objects and, per object, the parts one can see."""

    kind: Literal["scene", "object", "part"]
    objects: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]


def draw_crops(vocabulary: Vocabulary, *, seed: int, stream: str, count: int) -> Iterator[tuple[NDArray, Shown]]:
    """Crops [SIDE, SIDE, 3] of `count` drawings, each object of the vocabulary in turn their subject."""
    artist = SceneArtist(vocabulary, size=_SIZE)
    names = vocabulary.label_objects
    for index in range(count):
        rng = np.random.default_rng((seed, STREAMS[stream], index))
        subject = names[index % len(names)]
        yield from _crops(artist.draw(rng, subject=subject), vocabulary, subject, rng)


def _crops(
    picture: Picture, vocabulary: Vocabulary, subject: str, rng: np.random.Generator
) -> Iterator[tuple[NDArray, Shown]]:
    names = vocabulary.label_objects
    regions = {name: picture.object == i for i, name in enumerate(names) if (picture.object == i).any()}
    parts = {name: _parts(picture, vocabulary, region) for name, region in regions.items()}
    yield _cut(picture.image, (0, 0, _SIZE, _SIZE)), Shown("scene", tuple(regions), tuple(map(tuple, parts.values())))
    for name, region in regions.items():
        if region.sum() < _LEAST_OBJECT:
            continue
        box = _around(region, rng.uniform(1.0, 1.3), rng)
        yield _cut(picture.image, box), Shown("object", (name,), (tuple(parts[name]),))
        for part in rng.permutation(list(parts[name]))[: _PART_CROPS[name != subject]]:
            box = _around(parts[name][part], rng.uniform(1.2, 2.2), rng)
            yield _cut(picture.image, box), Shown("part", (name,), ((str(part),),))


def _parts(picture: Picture, vocabulary: Vocabulary, region: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """The visible parts of an object, by name."""
    ids, counts = np.unique(picture.part[region], return_counts=True)
    seen = [int(i) for i, count in zip(ids, counts) if i < len(vocabulary.pairs) and count >= _LEAST_PART]
    return {vocabulary.pairs[i][1]: picture.part == i for i in seen}


def _around(region: NDArray[np.bool_], margin: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A square about the region, `margin` times its longer side, moved a little."""
    rows, columns = np.nonzero(region)
    side = margin * (max(np.ptp(rows), np.ptp(columns)) + 1)
    y, x = ((values.min() + values.max() + 1) / 2 + rng.normal(0, 0.06) * side for values in (rows, columns))
    half = max(side, _LEAST_SIDE) / 2
    return round(x - half), round(y - half), round(x + half), round(y + half)


def _cut(image: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


# ---- on disk -------------------------------------------------------------------------------------------------------
def write_crops(folder: Path, crops: Iterable[tuple[NDArray, Shown]]) -> int:
    """Images [N, SIDE, SIDE, 3] in one array, names in one JSON; the number of crops."""
    images, shown = zip(*crops)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / FILES[0], np.stack(images))
    (folder / FILES[1]).write_text(json.dumps([asdict(each) for each in shown]) + "\n")
    return len(images)


def read_crops(folder: Path) -> tuple[NDArray[np.uint8], list[Shown]]:
    """What `write_crops` wrote."""
    rows = json.loads((folder / FILES[1]).read_text())
    shown = [Shown(row["kind"], tuple(row["objects"]), tuple(map(tuple, row["parts"]))) for row in rows]
    return np.load(folder / FILES[0]), shown


# ---- words ---------------------------------------------------------------------------------------------------------
_OF_OBJECTS = ("{}", "a {}", "a photo of a {}", "a picture of a {}")
_OF_PART = ("{}", "a photo of a {}", "a close-up of the {}")
_OF_OWNED = ("{0} {1}", "a photo of a {0} {1}", "the {0}'s {1}", "the {1} of the {0}", "the {1} of a {0}")


def caption(shown: Shown, rng: np.random.Generator) -> tuple[str, Meaning]:
    """One of the texts that may stand under a crop, and what it says."""

    def one_of(texts: tuple[str, ...]) -> str:
        return texts[int(rng.integers(len(texts)))]

    owner, own_parts = shown.objects[0], shown.parts[0]
    if shown.kind == "part":
        part = own_parts[0]
        if rng.random() < 0.25:
            return one_of(_OF_PART).format(part), ("part", part)
        return one_of(_OF_OWNED).format(owner, part), ("object part", owner, part)
    if len(shown.objects) == 1 and own_parts and rng.random() < 0.4:
        some = [str(part) for part in rng.permutation(own_parts)[: int(rng.integers(1, 4))]]
        return one_of(_OF_OBJECTS).format(f"{owner} with {_list(some)}"), ("object with", owner, *sorted(some))
    return one_of(_OF_OBJECTS).format(_list(shown.objects)), ("objects", *shown.objects)


def _list(names: list[str] | tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
