"""Convert the original Pascal-Part annotations to the Pascal-Part-116 layout.

    python datasets/prepare_pascal_part.py annotations=Annotations_Part voc=VOCdevkit clip_to_voc=all \\
        output=data/PascalPart116

Arguments are key=value:
    annotations  folder Annotations_Part with the .mat files (required)
    voc          VOCdevkit, or VOC2010 / VOC2012 in it (required)
    output       new folder for the result (required)
    clip_to_voc  all: cut parts to the VOC segmentation as the benchmark does; available: only images that have a mask;
                 no (default)
    voc_masks    folder of class masks (default: SegmentationClassAug or SegmentationClass)
    val_list     ids of the val split (default: VOC2012 Segmentation val.txt)
    link         true links the photos instead of copying them
    processes    worker processes (default: all cores)

Sources are only read. A run that was interrupted goes on with the same command. datasets/README.md says where to get
the sources and how the result differs from the benchmark's own labels.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from converters import pascal
from converters.conversion import Conversion
from converters.labels import label_counts
from converters.sources import find_folder, find_stems, read_names, report
from partseg.utils import arguments
from partseg.utils.files import sha256_of
from partseg.utils.parallel import default_processes
from partseg.vocabulary.shipped import shipped

NOT_COMPARABLE = (
    "labels were converted again from Pascal-Part: the benchmark's own label files lack parts in images with several "
    "objects, so scores on this copy must not be compared with published ones"
)


CLIP = ("all", "available", "no")


@dataclass(frozen=True)
class Options:
    annotations: Path
    voc: Path
    output: Path
    clip_to_voc: str = "no"
    voc_masks: Path | None = None
    val_list: Path | None = None
    link: bool = False
    processes: int = field(default_factory=default_processes)


def main(options: Options) -> int:
    if options.clip_to_voc not in CLIP:
        raise ValueError(f"clip_to_voc={options.clip_to_voc} is not one of {', '.join(CLIP)}")
    annotations = find_stems(options.annotations, (".mat",), inside=("Annotations_Part",))
    photos = find_stems(options.voc, (".jpg",), inside=("VOC2010/JPEGImages", "VOC2012/JPEGImages", "JPEGImages"))
    masks: dict[str, Path] = {}
    if options.clip_to_voc != "no":
        folder = options.voc_masks or find_folder(options.voc, _in_voc("SegmentationClassAug", "SegmentationClass"))
        masks = find_stems(folder, (".png",), inside=())
    val_list = options.val_list or find_folder(
        options.voc, ("VOC2012/ImageSets/Segmentation/val.txt", "ImageSets/Segmentation/val.txt")
    )
    jobs = pascal.make_jobs(
        annotations,
        photos,
        masks,
        val=read_names(val_list),
        clip=cast("pascal.Clip", options.clip_to_voc),
        output=options.output,
        link=options.link,
    )
    settings = {"clip_to_voc": options.clip_to_voc, "link": options.link, "val_list_sha256": sha256_of(val_list)}
    conversion = Conversion(options.output, tool="prepare_pascal_part", version=pascal.TOOL_VERSION, options=settings)
    items = conversion.run(pascal.convert, jobs, processes=options.processes)
    names = shipped("pascal_part_116")
    shared = {
        f"{pascal.PART_FOLDER}/{split}_{short}_label_count.json": label_counts(items, split, level, ".png")
        for split in ("train", "val")
        for short, level in (("obj", "object"), ("part", "object_part"))
    }
    report(
        conversion.finish(
            items,
            shared_files=shared,
            names={"object": names.label_objects, "object_part": names.object_parts},
            not_comparable=NOT_COMPARABLE,
            notes={"clipped_to_voc": sum(job.mask is not None for job in jobs)},
        ),
        options.output,
    )
    return 0


def _in_voc(*folders: str) -> tuple[str, ...]:
    return tuple(f"{parent}{name}" for name in folders for parent in ("VOC2012/", "VOC2010/", ""))


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
