"""results.json: what was measured, of what, and every number per class. The one file that other tools read.

format            "partseg-results-1"; complete: true (the file is written in one move when everything is known)
synthetic         true when the data set's provenance.json says that it was drawn, not photographed
cross_dataset     true when the model was trained on another vocabulary or data set; then nothing is unseen
dataset           {name, split, manifest_hash, num_images}
vocabulary        {name, key, num_object_parts, num_objects, num_parts, num_unseen}
checkpoint        {path, sha256, iteration, vocabulary {name, key}}, or null for predictions from files
protocols         evaluator name -> its entry: what each kind of evaluator says of itself (`Result.describe`), with
    kind          pixels, instances, segments or referring
    metrics       flat scores in percent or null (not defined): "mIoU", "AP", ... with X_seen, X_unseen, X_harmonic
  and for pixels
    protocol, averaging, num_images, num_pixels, num_dropped
    metrics       by the averaging rule above: mIoU, recall, the boundary_iou measures where counted, fwIoU, mACC, pACC,
                  and "IoU/<object-part>" for each class
    averages      measure -> averaging rule -> {all, seen, unseen, harmonic}
    without_background_predictions    the same for IoU when labelled pixels predicted as background are left out, as
                  in detectron2 and OV-PARTS; not comparable with the metrics above
    classes       [{object, part, seen, num_pixels, num_predicted, iou, recall, ...}] in object-part order; a measure
                  is null for a class that the truth lacks, whatever num_predicted is, and 0 for one that was missed
    objects, parts    mean IoU per object and per part name, over the classes that occur in the truth
    confusion     [[truth, prediction, pixels], ...], entries that are not 0; id K is background
seconds_per_image {network, postprocess, loading}: work per image, summed over processes; null for predictions
peak_memory_bytes, peak_device_memory_bytes, num_processes, config, git_commit, environment
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partseg.data import io
from partseg.data.dataset import PartSegDataset
from partseg.evaluation.runner import Evaluation
from partseg.utils import distributed
from partseg.utils.files import json_bytes, sha256_of, write_atomic
from partseg.vocabulary.names import Vocabulary

FORMAT = "partseg-results-1"
FILE_NAME = "results.json"


def describe_dataset(dataset: PartSegDataset, vocabulary: Vocabulary) -> dict[str, Any]:
    """The entries `synthetic`, `dataset` and `vocabulary`; `vocabulary` is the one that was scored with."""
    return {
        "synthetic": is_synthetic(dataset.records[0].file_name),
        "dataset": {
            "name": dataset.name,
            "split": dataset.split,
            "manifest_hash": dataset.manifest_hash,
            "num_images": len(dataset),
        },
        "vocabulary": {
            "name": vocabulary.name,
            "key": vocabulary.key,
            "num_object_parts": vocabulary.num_object_parts,
            "num_objects": vocabulary.num_objects,
            "num_parts": vocabulary.num_parts,
            "num_unseen": int((~vocabulary.seen).sum()),
        },
    }


def describe_cost(evaluation: Evaluation) -> dict[str, Any]:
    """The entries about time and memory."""
    images = max(evaluation.num_images, 1)
    return {
        "seconds_per_image": {
            "network": evaluation.network_seconds / images,
            "postprocess": evaluation.postprocess_seconds / images,
            "loading": evaluation.loading_seconds / images,
        },
        "peak_memory_bytes": evaluation.peak_memory_bytes,
        "peak_device_memory_bytes": evaluation.peak_device_memory_bytes,
        "num_processes": distributed.world_size(),
    }


def write(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write results.json into `folder`, whole or not at all; until then an older one stays, with its own checkpoint."""
    path = folder / FILE_NAME
    write_atomic(path, json_bytes({"format": FORMAT, "complete": True, **content}, indent=1))
    return path


def read(path: str | Path) -> dict[str, Any]:
    """The content of a results.json (or of the one in a folder); ValueError if it is not one or not complete."""
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: the evaluation has not finished, run partseg eval again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("complete") is not True:
        raise ValueError(f"{path} is not a complete result of this version ({FORMAT}); evaluate again")
    return content


def is_of(folder: Path, checkpoint: Path) -> bool:
    """Does `folder` hold a result of this very file, and not of one that had its name before?"""
    try:
        found = read(folder)["checkpoint"]
    except (FileNotFoundError, ValueError):
        return False
    return found is not None and checkpoint.is_file() and found["sha256"] == sha256_of(checkpoint)


def is_synthetic(image: str | Path) -> bool:
    """Does a provenance.json above an image of the data set say that the set is synthetic?"""
    for folder in list(Path(image).resolve().parents)[:4]:
        path = folder / "provenance.json"
        if path.is_file():
            provenance = io.read_json(path)
            return isinstance(provenance, Mapping) and bool(provenance.get("synthetic", False))
    return False
