"""Objects that some segmenter found, which may be told: a folder of object PNGs, or one COCO file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from partseg.data import coco, io
from partseg.data.labels import object_map
from partseg.geometry import Size
from partseg.labels import BACKGROUND_LABEL
from partseg.structures import Record
from partseg.vocabulary.names import Vocabulary


class GivenObjects:
    """Object maps by image id. `path` is a folder with `<image id>.png` in the data set's object ids, or a COCO file.

    Of the file, instances of categories that are objects of the vocabulary count, better ones on top; a picture of
    which it knows none has no object. FileNotFoundError for a path that is not there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.found: Mapping[str, list[Mapping[str, Any]]] | None = None
        if self.path.suffix == ".json" and self.path.is_file():
            self._read_file()
        elif not self.path.is_dir():
            raise FileNotFoundError(
                f"eval.objects: no folder {self.path}; it must hold one object PNG per image, or be a COCO file (.json)"
            )

    def _read_file(self) -> None:
        data = coco.read_coco(self.path)
        stems = coco.coco_stems(data, self.path)
        names = {category["id"]: category["name"] for category in data["categories"]}
        found: dict[str, list[Mapping[str, Any]]] = {stem: [] for stem in stems.values()}
        skipped: dict[str, int] = {}
        for annotation in sorted(data["annotations"], key=lambda each: each.get("score", 1.0)):
            if annotation["image_id"] not in stems:
                raise ValueError(f"{self.path}: annotation {annotation.get('id')} belongs to no image of the file")
            segmentation = coco.usable_segmentation(annotation, skipped)
            if segmentation is not None and annotation["category_id"] in names:
                entry = {"name": names[annotation["category_id"]], "segmentation": segmentation}
                found[stems[annotation["image_id"]]].append(entry)
        self.found = found

    def map_of(self, record: Record, vocabulary: Vocabulary, size: Size) -> Int[np.ndarray, "h w"]:
        """int32 object ids; ValueError for a PNG or a mask of another size, or a file of nothing that is asked for."""
        if self.found is None:
            return object_map(str(self.path / f"{record.image_id}.png"), vocabulary, size)
        objects = np.full(size, BACKGROUND_LABEL, np.int32)
        stem = io.file_stem(record.file_name)
        if stem not in self.found:
            raise ValueError(f"{self.path} does not list the image {stem!r}: it was made for other pictures")
        for entry in self.found[stem]:
            if entry["name"] in vocabulary.objects:
                mask = coco.decode_mask(entry["segmentation"], height=size[0], width=size[1], path=self.path)
                objects[mask] = vocabulary.object_id(entry["name"])
        return objects
