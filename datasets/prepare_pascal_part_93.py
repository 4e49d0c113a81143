"""Convert the original Pascal-Part annotations to the instances of VLPart: 93 object-parts, 77 base and 16 novel.

    python datasets/prepare_pascal_part_93.py annotations=Annotations_Part voc=VOCdevkit output=data/PascalPart93

Arguments are key=value:
    annotations  folder Annotations_Part with the .mat files (required)
    voc          VOCdevkit, or VOC2010 in it (required)
    output       new folder for the result (required)
    val_list     ids of the val split (default: VOC2010 Main val.txt)
    official     true: chain wheels are wheels, as in VLPart's own files
    link         true links the photos instead of copying them
    processes    worker processes (default: all cores)

Sources are only read. A run that was interrupted goes on with the same command. datasets/README.md says where to get
the sources.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from converters import pascal_93
from converters.conversion import Conversion
from converters.sources import find_folder, find_stems, read_names, report
from partseg.utils import arguments
from partseg.utils.files import sha256_of
from partseg.utils.parallel import default_processes
from partseg.vocabulary.shipped import shipped

NOT_COMPARABLE = "chain wheels are no wheels here; official=true takes them as VLPart's own conversion does"


@dataclass(frozen=True)
class Options:
    annotations: Path
    voc: Path
    output: Path
    val_list: Path | None = None
    official: bool = False
    link: bool = False
    processes: int = field(default_factory=default_processes)


def main(options: Options) -> int:
    annotations = find_stems(options.annotations, (".mat",), inside=("Annotations_Part",))
    photos = find_stems(options.voc, (".jpg",), inside=("VOC2010/JPEGImages", "VOC2012/JPEGImages", "JPEGImages"))
    val_list = options.val_list or find_folder(
        options.voc, ("VOC2010/ImageSets/Main/val.txt", "ImageSets/Main/val.txt", "VOC2012/ImageSets/Main/val.txt")
    )
    missing = sorted(set(annotations) - set(photos))
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(annotations)} annotations have no photo: {missing[:5]}")
    val = read_names(val_list)
    jobs = [
        pascal_93.Job93(
            name=name,
            split="val" if name in val else "train",
            annotation=str(path),
            image=str(photos[name]),
            output=str(options.output),
            link=options.link,
            official=options.official,
        )
        for name, path in sorted(annotations.items())
    ]
    settings = {"official": options.official, "link": options.link, "val_list_sha256": sha256_of(val_list)}
    conversion = Conversion(
        options.output, tool="prepare_pascal_part_93", version=pascal_93.TOOL_VERSION, options=settings
    )
    items = conversion.run(pascal_93.convert, jobs, processes=options.processes)
    names = shipped("pascal_part_93")
    splits = sorted({item.split for item in items if item.split})
    report(
        conversion.finish(
            items,
            shared_files={f"annotations_{split}.json": pascal_93.coco_json(items, split) for split in splits},
            names={"object": names.label_objects, "object_part": names.object_parts},
            not_comparable="" if options.official else NOT_COMPARABLE,
            notes={},
        ),
        options.output,
    )
    return 0


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
