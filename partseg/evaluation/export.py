"""Predictions of a whole data set as COCO-style JSON shards, written by any number of processes and resumed by shard.

`shard-00012.json` holds the predictions of records 12 n .. 13 n - 1. Every shard is written whole or not at all; what
is there is not made again. `complete.json` is written last and says what all of it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from partseg.data.dataset import PartSegDataset
from partseg.data.io import read_json
from partseg.data.loader import build_eval_loader
from partseg.data.origin import ORIGIN
from partseg.evaluation.evaluator import Answer, Objects
from partseg.evaluation.photos import photo_prediction
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.runner import on_device, predict_batch
from partseg.photo_prediction import PhotoPrediction, coco_document
from partseg.utils import distributed
from partseg.utils.files import json_bytes, write_atomic

COMPLETE = "complete.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportOptions:
    """`protocol` says what is told of the objects. Segments below `min_score` are left out.

    `checkpoint` is the sha256 of the file that predicts: a folder is not continued with another one.
    """

    protocol: str = "pred_all"
    min_score: float = 0.0
    shard_size: int = 500
    batch_size: int = 4
    num_workers: int = 2
    checkpoint: str = ""

    def __post_init__(self) -> None:
        if self.protocol not in ("pred_all", "oracle_obj"):
            raise ValueError(f"export.protocol={self.protocol!r} is not pred_all or oracle_obj")
        if self.shard_size < 1 or self.batch_size < 1:
            raise ValueError(f"export.shard_size={self.shard_size} and eval.batch_size={self.batch_size} start at 1")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"export.min_score={self.min_score} is not in 0..1")


def export(
    model: nn.Module, dataset: PartSegDataset, folder: Path, options: ExportOptions, *, predictor: Predictor
) -> int:
    """Write the shards that are missing, this process its share; the number of photos that all processes did now.

    ValueError for a folder with shards of another checkpoint, data set, split or size of shards. Every process must
    call it.
    """
    shards = range(-(-len(dataset) // options.shard_size))
    what = _description(dataset, options)

    def missing() -> list[int]:
        claim(folder, what)
        return [shard for shard in shards if not shard_path(folder, shard).is_file()]

    todo = distributed.from_main(missing)  # one list for all: who comes late would see what others have just written
    mine = todo[distributed.rank() :: distributed.world_size()]
    done = 0
    without: list[str] = []
    for shard in mine:
        distributed.at(f"shard {shard} of an export")
        first = shard * options.shard_size
        part = dataset.subset(range(first, min(first + options.shard_size, len(dataset))))
        predictions = _predict(model, part, options, predictor)
        document = coco_document(predictions, dataset.vocabulary)
        document["info"] |= {ORIGIN: what}
        write_atomic(shard_path(folder, shard), json_bytes(document))
        done += len(part)
        without += [p.name for p in predictions if not any(s.level == "object_part" for s in p.segments)]
    distributed.at("the end of an export")
    total = sum(distributed.gather_objects(done))
    empty = [name for part in distributed.gather_objects(without) for name in part]
    if distributed.is_main():
        if empty:
            _log.warning(
                "%d of %d photos have no part with a score of %g or more: %s%s",
                len(empty),
                total,
                options.min_score,
                ", ".join(empty[:3]),
                ", ..." if len(empty) > 3 else "",
            )
        write_atomic(folder / COMPLETE, json_bytes({**what, "shards": len(shards), "complete": True}, indent=1))
    distributed.barrier()
    return total


def shard_path(folder: Path, shard: int) -> Path:
    """File of one shard."""
    return folder / f"shard-{shard:05d}.json"


def _description(dataset: PartSegDataset, options: ExportOptions) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "manifest_hash": dataset.manifest_hash,
        "num_images": len(dataset),
        "vocabulary": dataset.vocabulary.key,
        "shard_size": options.shard_size,
        "protocol": options.protocol,
        "min_score": options.min_score,
        "checkpoint": options.checkpoint,
    }


def made_by(folder: Path) -> str | None:
    """sha256 of the checkpoint that the complete export in `folder` was made by, None where there is none."""
    path = folder / COMPLETE
    return read_json(path).get("checkpoint") if path.is_file() else None


def claim(folder: Path, what: Mapping[str, Any]) -> None:
    """Note what the folder is for; ValueError where it is for something else."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "export.json"
    if path.is_file():
        before = read_json(path)
        other = {key: (before.get(key), value) for key, value in what.items() if before.get(key) != value}
        if other:
            raise ValueError(f"{folder} holds another export ({other}); give another output, or delete it")
    write_atomic(path, json_bytes(what, indent=1))


def _predict(
    model: nn.Module, dataset: PartSegDataset, options: ExportOptions, predictor: Predictor
) -> list[PhotoPrediction]:
    if predictor.object_first and options.min_score > 0:
        raise ValueError("predictor.object_first gives segments no score: leave export.min_score=0")
    prepared = predictor.prepare(model, dataset.vocabulary)
    loader = build_eval_loader(dataset, batch_size=options.batch_size, num_workers=options.num_workers)
    device = next(model.parameters()).device
    predictions = []
    for batch in loader:
        told: Objects = "none"
        if options.protocol == "oracle_obj":
            told = "truth" if batch.samples[0].given is None else "given"
        for sample, prediction in zip(batch.samples, predict_batch(prepared, batch, told=(told,)), strict=True):
            answer = Answer(prediction, dataset.vocabulary, class_chunk=predictor.class_chunk)
            found = photo_prediction(
                answer, on_device(sample, device), dataset.vocabulary, options.protocol, keep_scores=True
            )
            predictions.append(_kept(replace(found, source=str(Path(sample.file_name).absolute())), options.min_score))
    return predictions


def _kept(prediction: PhotoPrediction, min_score: float) -> PhotoPrediction:
    """The segments that are good enough, and nothing else of a prediction; parents that are left out become none."""
    kept = [i for i, segment in enumerate(prediction.segments) if (segment.score or 0.0) >= min_score]
    place: Mapping[int, int] = {old: new for new, old in enumerate(kept)}
    segments: Sequence[Any] = [prediction.segments[i] for i in kept]
    moved = [replace(s, parent=None if s.parent is None else place.get(s.parent)) for s in segments]
    return replace(prediction, instances=tuple(moved), logits=None).without_pixels()
