"""Run what a table of the paper lacks, then lay the measured numbers beside the published ones.

python tools/reproduce_table.py scripts/tables/table1.yaml --num-gpus 8          scripts/reproduce_table1.sh calls this
python tools/reproduce_table.py scripts/tables/table1.yaml --dry-run             SLURM commands of what is missing
python tools/reproduce_table.py scripts/tables/*.yaml --smoke                    the whole pipeline on synthetic data
"""

from partseg.reproduce.command import reproduce

if __name__ == "__main__":
    reproduce()
