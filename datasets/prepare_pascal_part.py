"""Convert the original Pascal-Part annotations to the Pascal-Part-116 layout.

    python datasets/prepare_pascal_part.py --annotations Annotations_Part --voc VOCdevkit --clip-to-voc \\
        --output data/PascalPart116

Sources are only read. A run that was interrupted goes on with the same command. datasets/README.md says where to get
the sources and how the result differs from the benchmark's own labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from converters import pascal
from converters.cli import add_common_arguments, find_folder, find_stems, read_names, report, run_main
from converters.conversion import Conversion
from converters.labels import label_counts
from partseg.utils.files import sha256_of
from partseg.vocabulary.shipped import shipped

NOT_COMPARABLE = (
    "labels were converted again from Pascal-Part: the benchmark's own label files lack parts in images with several "
    "objects, so scores on this copy must not be compared with published ones"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="folder Annotations_Part with the .mat files")
    parser.add_argument("--voc", type=Path, required=True, help="VOCdevkit, or VOC2010 / VOC2012 in it")
    parser.add_argument(
        "--clip-to-voc",
        nargs="?",
        const="all",
        default="no",
        choices=("all", "available"),
        help="cut parts to the VOC segmentation as the benchmark does; `available`: only images that have a mask",
    )
    parser.add_argument(
        "--voc-masks", type=Path, help="folder of class masks (default: SegmentationClassAug or SegmentationClass)"
    )
    parser.add_argument("--val-list", type=Path, help="ids of the val split (default: VOC2012 Segmentation val.txt)")
    parser.add_argument("--link", action="store_true", help="link the photos instead of copying them")
    add_common_arguments(parser)
    args = parser.parse_args()

    annotations = find_stems(args.annotations, (".mat",), inside=("Annotations_Part",))
    photos = find_stems(args.voc, (".jpg",), inside=("VOC2010/JPEGImages", "VOC2012/JPEGImages", "JPEGImages"))
    masks: dict[str, Path] = {}
    if args.clip_to_voc != "no":
        folder = args.voc_masks or find_folder(args.voc, _in_voc("SegmentationClassAug", "SegmentationClass"))
        masks = find_stems(folder, (".png",), inside=())
    val_list = args.val_list or find_folder(
        args.voc, ("VOC2012/ImageSets/Segmentation/val.txt", "ImageSets/Segmentation/val.txt")
    )
    jobs = pascal.make_jobs(
        annotations,
        photos,
        masks,
        val=read_names(val_list),
        clip=args.clip_to_voc,
        output=args.output,
        link=args.link,
    )
    options = {"clip_to_voc": args.clip_to_voc, "link": args.link, "val_list_sha256": sha256_of(val_list)}
    conversion = Conversion(args.output, tool="prepare_pascal_part", version=pascal.TOOL_VERSION, options=options)
    items = conversion.run(pascal.convert, jobs, processes=args.processes)
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
        args.output,
    )


def _in_voc(*folders: str) -> tuple[str, ...]:
    return tuple(f"{parent}{name}" for name in folders for parent in ("VOC2012/", "VOC2010/", ""))


if __name__ == "__main__":
    run_main(main)
