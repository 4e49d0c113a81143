"""Predicted label maps as 16-bit PNGs, one folder per evaluator: tools/eval_net.py writes, score_predictions.py reads.

0..K-1 are object-part ids of the evaluation vocabulary, 65535 is background. Other people's predictions look the same.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from partseg.data import io
from partseg.labels import IGNORE_LABEL
from partseg.structures import Sample
from partseg.utils.files import inside


class PredictionWriter:
    """Writes `<folder>/<evaluator>/<image id>.png`; usable as the runner's `on_labels`.

    Nothing appears in `folder` before `finish`, so that an evaluation that is interrupted mixes with no earlier one.
    """

    def __init__(self, folder: Path, *, num_classes: int) -> None:
        if num_classes > IGNORE_LABEL:
            raise ValueError(f"{num_classes} classes do not fit in 16-bit PNGs")
        self.folder = folder
        self.unfinished = folder.with_name(f".{folder.name}.part")
        self.num_classes = num_classes

    def begin(self) -> None:
        """Clear what an interrupted evaluation left; on one rank, before any of them writes."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.unfinished.mkdir(parents=True)

    def __call__(self, sample: Sample, labels: dict[str, Tensor]) -> None:
        """Write one image's label maps."""
        for name, label_map in labels.items():
            path = prediction_path(inside(self.unfinished, name), sample.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            ids = label_map.cpu().numpy()
            Image.fromarray(np.where(ids == self.num_classes, IGNORE_LABEL, ids).astype(np.uint16)).save(path)

    def finish(self) -> None:
        """Put the folders in the place of earlier ones; on one rank, after all have written."""
        self.folder.mkdir(exist_ok=True)
        for new in list(self.unfinished.iterdir()):
            place = self.folder / new.name
            if place.exists():
                place.replace(self.unfinished / f"{new.name}.old")
            new.replace(place)
        shutil.rmtree(self.unfinished)


def read_prediction(folder: Path, sample: Sample, num_classes: int, *, bits: int = 16) -> Int[Tensor, "h w"]:
    """Predicted ids 0..K-1, K for background; ValueError that names the file for a wrong size or id."""
    path = prediction_path(folder, sample.name)
    if not path.is_file():
        raise FileNotFoundError(
            f"no prediction {path} for the image {sample.file_name}; predictions={folder} must hold one for each image"
        )
    ids = io.read_label(path, bits=bits)
    if ids.shape != tuple(sample.object_part.shape):
        raise ValueError(
            f"prediction {path} is {ids.shape[0]} x {ids.shape[1]} (height x width), the image's label is "
            f"{sample.object_part.shape[0]} x {sample.object_part.shape[1]}; write predictions at the label's size"
        )
    lut = np.arange(IGNORE_LABEL + 1, dtype=np.int32)
    lut[IGNORE_LABEL] = num_classes
    table = io.file_table(lut, num_classes, bits=bits)
    return torch.from_numpy(io.translate(ids, table, path=path, what="predicted object-part"))


def prediction_path(folder: Path, image_id: str) -> Path:
    """The PNG of one image; ids may contain slashes. ValueError for one that leads out of the folder."""
    return inside(folder, f"{image_id}.png")
