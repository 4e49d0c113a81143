"""Write the 40-class selection of PartImageNet_Seg as partimagenet_40_index.json; no picture or label is touched.

    python datasets/prepare_partimagenet.py partimagenet=data/PartImageNet

Arguments are key=value:
    partimagenet  folder of PartImageNet_Seg, as unpacked (required)
    splits        train, val or test; may be given several times (default: train and val)
    output        folder for the index (default: beside the data, where the loader reads it)
    processes     worker processes (default: all cores)

Every selected photo is read and its size checked on the way. A run that was interrupted goes on with the same command.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from converters import partimagenet
from converters.conversion import Conversion
from converters.sources import report
from partseg.data.io import resolve_root
from partseg.data.partimagenet import FOLDER_NAMES, INDEX_FILE, LAYOUTS, SPLITS
from partseg.utils import arguments
from partseg.utils.parallel import default_processes
from partseg.vocabulary.shipped import shipped


@dataclass(frozen=True)
class Options:
    partimagenet: Path
    splits: tuple[str, ...] = ("train", "val")
    output: Path | None = None
    processes: int = field(default_factory=default_processes)


def main(options: Options) -> int:
    unknown = sorted(set(options.splits) - set(SPLITS))
    if unknown:
        raise ValueError(f"splits={unknown[0]} is not one of {', '.join(SPLITS)}")
    root = resolve_root(options.partimagenet, names=FOLDER_NAMES, markers=LAYOUTS)
    output = options.output or root
    jobs, left_out = [], {}
    for split in sorted(set(options.splits)):
        split_jobs, left_out[split] = partimagenet.make_jobs(root, split)
        jobs += split_jobs
    settings = {"splits": sorted(set(options.splits))}
    conversion = Conversion(output, tool="prepare_partimagenet", version=partimagenet.TOOL_VERSION, options=settings)
    items = conversion.run(partimagenet.check, jobs, processes=options.processes)
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
    return 0


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
