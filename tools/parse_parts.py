"""Pseudo parts for photos of which only the object is known: parsed from labelled pictures that look alike.

    python tools/parse_parts.py ckpt=output/base dino=dino_vits8.safetensors base=pascal_part_93 \\
        photos=imagenet folders='{dog: [n02085620], bus: [n04146614]}' output=labels/parsed

Arguments are key=value:
    ckpt        the base detector: a .pt file or a run directory of VLPart (required)
    dino        weights of DINO ViT-S/8, names as in timm's vit_small_patch8_224.dino (required; `random` to try it out)
    base        data set with instances of parts, in configs/dataset/ (default: pascal_part_93)
    data_root   folder of the data sets (default: data)
    photos      folder that holds a folder of photos per object (required)
    folders     YAML mapping of objects to folders (default: folders are called like objects)
    vocabulary  shipped name or YAML file: what the new parts are called (default: that of the base data set, all of it)
    output      folder of the shards (required)
    short_side  pixels of a picture's shorter side for DINO (default: 224; the paper's IN-S20: 336)
    most, largest_side  photos of each folder, and their longest side (default: all)
    shard_size  photos per file (default: 500)
    process, processes  this one's number and how many share the work (default: 0 of 1)
    device      cpu, cuda, ... (default: a GPU where there is one)

An object that the detector was trained on keeps the detector's own parts of it (score above 0.7). Others get parts of
the most similar single-object picture, moved by the most similar cells and snapped to a box of the detector.
Written: shard-00000.json and so on, COCO-style: bbox is the detector's box, score how well it fits, mask the moved one;
each is written whole or not at all and not made again. complete.json comes last. Train on them with dataset=coco_style
in a mixture, and model.sources.<name>.kind=pseudo.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from partseg.data import catalog, io
from partseg.data.dataset import PartSegDataset
from partseg.data.label_folders import label_folders
from partseg.data.mapper import EvalMapper
from partseg.engine.checkpoint import digest, load_model
from partseg.evaluation.export import claim
from partseg.systems.vlpart.network import VlPart
from partseg.systems.vlpart.parser import Parser, document, load_dino
from partseg.utils import arguments
from partseg.utils.files import json_bytes, write_atomic
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.words import as_vocabulary


@dataclass(frozen=True)
class Options:
    ckpt: Path
    dino: Path
    photos: Path
    output: Path
    base: str = "pascal_part_93"
    data_root: Path = Path("data")
    folders: str | None = None
    vocabulary: str | None = None
    short_side: int = 224
    most: int | None = None
    largest_side: int | None = None
    shard_size: int = 500
    process: int = 0
    processes: int = 1
    device: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.process < self.processes:
            raise ValueError(f"process={self.process} is not in 0..{self.processes - 1} (processes={self.processes})")
        if self.shard_size < 1 or self.short_side < 8:
            raise ValueError(f"shard_size={self.shard_size} starts at 1, short_side={self.short_side} at 8")


def main(options: Options) -> int:
    model, seen, _ = load_model(options.ckpt)
    if not isinstance(model, VlPart):
        raise ValueError(f"ckpt={options.ckpt} holds a {type(model).__name__}, the parser needs a VlPart")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    mapper = EvalMapper(instances="annotated")
    base = catalog.get(options.base, split="train", data_root=options.data_root, mapper=mapper)
    words = options.vocabulary or str(catalog.node(options.base)["vocabulary"])
    photos = label_folders(
        options.photos,
        vocabulary=words,
        folders=None if options.folders is None else yaml.safe_load(options.folders),
        most=options.most,
        largest_side=options.largest_side,
        all_seen=True,
        name="photos",
    )
    vocabulary = as_vocabulary(words)
    shards = range(-(-len(photos) // options.shard_size))
    origin = description(options, photos, vocabulary)
    claim(options.output, origin)
    with torch.inference_mode():
        dino = load_dino(options.dino).to(device)
        parser = Parser(model.to(device), dino, base, seen=seen, short_side=options.short_side)
    for shard in shards[options.process :: options.processes]:
        path = options.output / f"shard-{shard:05d}.json"
        if path.is_file():
            continue
        first = shard * options.shard_size
        found = []
        for record in photos.records[first : first + options.shard_size]:
            photo = io.read_image(record.file_name)
            owner = photos.label_vocabulary.label_objects[record.image_labels[0]]
            with torch.inference_mode():
                found.append((record, photo, parser(photo, owner=owner, vocabulary=vocabulary)))
        write_atomic(path, json_bytes(document(found, vocabulary, origin=origin)))
        print(f"{path}: {sum(bool(parts) for *_, parts in found)} of {len(found)} photos have parts")
    if all((options.output / f"shard-{shard:05d}.json").is_file() for shard in shards):
        write_atomic(options.output / "complete.json", json_bytes({"shards": len(shards), "complete": True}))
    return 0


def description(options: Options, photos: PartSegDataset, vocabulary: Vocabulary) -> dict[str, object]:
    """What a folder of shards is made of; another one is refused."""
    return {
        "checkpoint": digest(options.ckpt),
        "dataset": options.base,
        "short_side": options.short_side,
        "shard_size": options.shard_size,
        "num_images": len(photos),
        "photos": photos.manifest_hash,
        "vocabulary": vocabulary.key,
    }


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
