"""Write the 40-class selection of PartImageNet_Seg as partimagenet_40_index.json; no picture or label is touched.

    python datasets/prepare_partimagenet.py --partimagenet data/PartImageNet

Every selected photo is read and its size checked on the way. A run that was interrupted goes on with the same command.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from converters import partimagenet
from converters.cli import add_common_arguments, report, run_main
from converters.conversion import Conversion
from partseg.data.io import resolve_root
from partseg.data.partimagenet import FOLDER_NAMES, INDEX_FILE, LAYOUTS, SPLITS
from partseg.vocabulary.shipped import shipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partimagenet", type=Path, required=True, help="folder of PartImageNet_Seg, as unpacked")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=["train", "val"], help="splits to select (default: train val)"
    )
    add_common_arguments(
        parser, output_help="folder for the index (default: beside the data, where the loader reads it)"
    )
    args = parser.parse_args()

    root = resolve_root(args.partimagenet, names=FOLDER_NAMES, markers=LAYOUTS)
    output = args.output or root
    jobs, left_out = [], {}
    for split in sorted(set(args.splits)):
        split_jobs, left_out[split] = partimagenet.make_jobs(root, split)
        jobs += split_jobs
    options = {"splits": sorted(set(args.splits))}
    conversion = Conversion(output, tool="prepare_partimagenet", version=partimagenet.TOOL_VERSION, options=options)
    items = conversion.run(partimagenet.check, jobs, processes=args.processes)
    names = shipped("partimagenet_40")
    report(
        conversion.finish(
            items,
            shared_files={INDEX_FILE: partimagenet.index_json(jobs)},
            names={"object": names.label_objects, "object_part": names.object_parts},
            not_comparable="",
            notes={"annotations_left_out_when_loading": left_out},
        ),
        output,
    )


if __name__ == "__main__":
    run_main(main)
