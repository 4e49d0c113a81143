"""Run what a table of the paper lacks, then lay the measured numbers beside the published ones.

    python tools/reproduce_table.py scripts/tables/table1.yaml num_gpus=8     # scripts/reproduce_table1.sh calls this
    python tools/reproduce_table.py scripts/tables/table1.yaml --dry-run      # SLURM commands of what is missing
    python tools/reproduce_table.py scripts/tables/*.yaml --smoke             # the whole pipeline on synthetic data

Arguments are key=value, after the table files:
    seeds     seeds, separated by commas (default: the paper's 1,2,3,4,5; smoke: 1)
    output    folder of all runs (default: output/tables; smoke: output/smoke_tables)
    smoke     true: two steps per run on synthetic data, which tests the pipeline
    dry_run   true: print SLURM commands of what is missing and run nothing
    num_gpus  GPUs per run on this machine
    override  config override for every run, may be given several times: override=recipe=official
"""

import sys

from partseg.reproduce.command import Reproduce, reproduce
from partseg.utils.arguments import run

if __name__ == "__main__":
    sys.exit(run(reproduce, Reproduce, __doc__))
