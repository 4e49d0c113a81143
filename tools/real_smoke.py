"""Small steps of scripts/real_smoke.sh that need more than a shell.

python tools/real_smoke.py choose pascal_part_116 FOLDER ID ...   makes the photos a few-shot set, prints overrides
python tools/real_smoke.py speed RUN                              loss and seconds per step of a finished run
python tools/real_smoke.py overlays RUN OUTPUT.png                photo, truth, each protocol's prediction
python tools/real_smoke.py check RUN 60                           exit code 1 unless oracle_obj mIoU is above 60
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from partseg.data import catalog, io
from partseg.data.mapper import EvalMapper
from partseg.evaluation import results
from partseg.evaluation.predictions import read_prediction
from partseg.labels import IGNORE_LABEL
from partseg.photo_prediction import shrunk
from partseg.utils.config import instantiate, stored
from partseg.utils.files import json_bytes, write_atomic
from partseg.utils.visualize import overlay, save_png, tile

SIDE = 480


def choose(name: str, root: str, *photos: str) -> None:
    """Write train_<n>shot.json, and print the overrides that train on these photos and the objects in them alone.

    Fewer objects are fewer prompts, and each prompt runs through the decoder: that makes it affordable on a CPU.
    """
    whole = catalog.get(name, split="train", root=root, all_seen=True)
    files = {record.image_id: record.file_name for record in whole.records}
    absent = [photo for photo in photos if photo not in files]
    if absent:
        raise ValueError(f"{root} has no training photos {absent}; give others with --photos or --ade-photo")
    write_atomic(
        Path(root) / f"train_{len(photos)}shot.json", json_bytes([{"file_name": files[photo]} for photo in photos])
    )
    few = catalog.get(name, split="train", root=root, all_seen=True, shots=len(photos))
    owner = few.vocabulary.object_of
    present: set[int] = set()
    for index in range(len(few)):
        labels = np.unique(few[index].object_part.numpy())
        present |= set(owner[labels[labels != IGNORE_LABEL]].tolist())
    hidden = [o for i, o in enumerate(few.vocabulary.objects) if i not in present]
    hidden += few.vocabulary.extra_objects
    for node in ("dataset", "eval_dataset"):
        print(f"+{node}.shots={len(photos)}")
        print(f"+{node}.unseen_objects={json.dumps(hidden)}")


def speed(run: str) -> None:
    """First and last loss, and the median time of a step."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "train/loss" in line]
    seconds = statistics.median(line["train/seconds_per_step"] for line in steps)
    rate = statistics.median(line["train/images_per_second"] for line in steps)
    first, last = steps[0], steps[-1]
    print(
        f"{last['iteration']} steps: loss {first['train/loss']:.4f} -> {last['train/loss']:.4f}, "
        f"{seconds:.2f} s per step, {rate:.2f} photos per second, learning rate {last['train/lr']:.3g}"
    )


def check(run: str, least: str) -> None:
    """SystemExit unless the run's own photos reach the score."""
    protocols = results.read(Path(run))["protocols"]
    scores = {name: entry["metrics"]["mIoU"] for name, entry in protocols.items()}
    print("mIoU on the training photos: " + ", ".join(f"{name} {score:.1f}" for name, score in scores.items()))
    if not scores["oracle_obj"] > float(least):
        raise SystemExit(f"FAILED: oracle_obj mIoU {scores['oracle_obj']:.1f} is not above {least}")


def overlays(run: str, output: str) -> None:
    """One row per photo: photo, ground truth, then what each protocol predicted."""
    content = results.read(Path(run))
    config = content["config"]
    node = stored(config["eval_dataset"], group="dataset")
    dataset = instantiate(node, split=config["eval"]["split"], mapper=EvalMapper())
    names = dataset.vocabulary.object_parts
    pictures, captions = [], []
    for index in range(len(dataset)):
        sample = dataset[index]
        image = np.asarray(io.read_image(sample.file_name))
        maps = {"ground truth": sample.object_part.numpy()}
        for protocol in content["protocols"]:
            folder = Path(run) / "predictions" / protocol
            maps[protocol] = read_prediction(folder, sample, len(names)).numpy()
        pictures.append(shrunk(image, maps["ground truth"], SIDE)[0])
        captions.append(sample.name)
        for title, labels in maps.items():
            pictures.append(overlay(*shrunk(image, labels, SIDE), names))
            captions.append(title)
    save_png(tile(pictures, columns=2 + len(content["protocols"]), captions=captions), Path(output))
    print(output)


STEPS: dict[str, Callable[..., None]] = {"choose": choose, "speed": speed, "overlays": overlays, "check": check}

if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in STEPS:
        sys.exit(__doc__)
    try:
        STEPS[sys.argv[1]](*sys.argv[2:])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
