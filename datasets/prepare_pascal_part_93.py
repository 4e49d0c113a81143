"""Convert the original Pascal-Part annotations to the instances of VLPart: 93 object-parts, 77 base and 16 novel.

    python datasets/prepare_pascal_part_93.py --annotations Annotations_Part --voc VOCdevkit --output data/PascalPart93

Sources are only read. A run that was interrupted goes on with the same command. datasets/README.md says where to get
the sources.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from converters import pascal_93
from converters.cli import add_common_arguments, find_folder, find_stems, read_names, report, run_main
from converters.conversion import Conversion
from partseg.utils.files import sha256_of
from partseg.vocabulary.shipped import shipped

NOT_COMPARABLE = "chain wheels are no wheels here; --official takes them as VLPart's own conversion does"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="folder Annotations_Part with the .mat files")
    parser.add_argument("--voc", type=Path, required=True, help="VOCdevkit, or VOC2010 in it")
    parser.add_argument("--val-list", type=Path, help="ids of the val split (default: VOC2010 Main val.txt)")
    parser.add_argument("--official", action="store_true", help="chain wheels are wheels, as in VLPart's own files")
    parser.add_argument("--link", action="store_true", help="link the photos instead of copying them")
    add_common_arguments(parser)
    args = parser.parse_args()

    annotations = find_stems(args.annotations, (".mat",), inside=("Annotations_Part",))
    photos = find_stems(args.voc, (".jpg",), inside=("VOC2010/JPEGImages", "VOC2012/JPEGImages", "JPEGImages"))
    val_list = args.val_list or find_folder(
        args.voc, ("VOC2010/ImageSets/Main/val.txt", "ImageSets/Main/val.txt", "VOC2012/ImageSets/Main/val.txt")
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
            output=str(args.output),
            link=args.link,
            official=args.official,
        )
        for name, path in sorted(annotations.items())
    ]
    options = {"official": args.official, "link": args.link, "val_list_sha256": sha256_of(val_list)}
    conversion = Conversion(args.output, tool="prepare_pascal_part_93", version=pascal_93.TOOL_VERSION, options=options)
    items = conversion.run(pascal_93.convert, jobs, processes=args.processes)
    names = shipped("pascal_part_93")
    splits = sorted({item.split for item in items if item.split})
    report(
        conversion.finish(
            items,
            shared_files={f"annotations_{split}.json": pascal_93.coco_json(items, split) for split in splits},
            names={"object": names.label_objects, "object_part": names.object_parts},
            not_comparable="" if args.official else NOT_COMPARABLE,
            notes={},
        ),
        args.output,
    )


if __name__ == "__main__":
    run_main(main)
