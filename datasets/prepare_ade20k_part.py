"""Convert ADE20K (full release 2021_17_01) to the ADE20K-Part-234 layout.

    python datasets/prepare_ade20k_part.py --ade20k ADE20K_2021_17_01 --output data/ADE20KPart234

Sources are only read. A run that was interrupted goes on with the same command. datasets/README.md says where to get
the source and how the result differs from the benchmark's own labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from converters import ade20k
from converters.cli import add_common_arguments, find_folder, report, run_main
from converters.conversion import Conversion
from partseg.vocabulary.shipped import shipped

NOT_COMPARABLE = (
    "labels were converted again from ADE20K: the benchmark's choice of images and instances is known only in part, "
    "so scores on this copy must not be compared with published ones"
)
FOLDERS = ("ADE20K_2021_17_01/images/ADE", "images/ADE", "ADE", "training", "validation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ade20k", type=Path, required=True, help="folder ADE20K_2021_17_01, as unpacked")
    parser.add_argument("--link", action="store_true", help="link the photos instead of copying them")
    add_common_arguments(parser)
    args = parser.parse_args()

    root = find_folder(args.ade20k, FOLDERS)
    root = root.parent if root.name in ade20k.SPLITS else root
    jobs = ade20k.make_jobs(root, output=args.output, link=args.link)
    conversion = Conversion(
        args.output, tool="prepare_ade20k_part", version=ade20k.TOOL_VERSION, options={"link": args.link}
    )
    items = conversion.run(ade20k.convert, jobs, processes=args.processes)
    names = shipped("ade20k_part_234")
    splits = sorted({item.split for item in items if item.split})
    report(
        conversion.finish(
            items,
            shared_files={f"ade20k_instance_{split}.json": ade20k.instance_json(items, split) for split in splits},
            names={"object": names.label_objects, "object_part": names.object_parts},
            not_comparable=NOT_COMPARABLE,
            notes={},
        ),
        args.output,
    )


if __name__ == "__main__":
    run_main(main)
