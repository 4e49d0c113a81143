"""Convert ADE20K (full release 2021_17_01) to the ADE20K-Part-234 layout.

    python datasets/prepare_ade20k_part.py ade20k=ADE20K_2021_17_01 output=data/ADE20KPart234

Arguments are key=value:
    ade20k     folder ADE20K_2021_17_01, as unpacked (required)
    output     new folder for the result (required)
    link       true links the photos instead of copying them
    processes  worker processes (default: all cores)

Sources are only read. A run that was interrupted goes on with the same command. datasets/README.md says where to get
the source and how the result differs from the benchmark's own labels.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from converters import ade20k
from converters.conversion import Conversion
from converters.sources import find_folder, report
from partseg.utils import arguments
from partseg.utils.parallel import default_processes
from partseg.vocabulary.shipped import shipped

NOT_COMPARABLE = (
    "labels were converted again from ADE20K: the benchmark's choice of images and instances is known only in part, "
    "so scores on this copy must not be compared with published ones"
)
FOLDERS = ("ADE20K_2021_17_01/images/ADE", "images/ADE", "ADE", "training", "validation")


@dataclass(frozen=True)
class Options:
    ade20k: Path
    output: Path
    link: bool = False
    processes: int = field(default_factory=default_processes)


def main(options: Options) -> int:
    root = find_folder(options.ade20k, FOLDERS)
    root = root.parent if root.name in ade20k.SPLITS else root
    jobs = ade20k.make_jobs(root, output=options.output, link=options.link)
    conversion = Conversion(
        options.output, tool="prepare_ade20k_part", version=ade20k.TOOL_VERSION, options={"link": options.link}
    )
    items = conversion.run(ade20k.convert, jobs, processes=options.processes)
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
        options.output,
    )
    return 0


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
