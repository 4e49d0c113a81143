"""Run trainings in stages: train, export predictions as labels, train on them, evaluate. One file says it all.

    python tools/run_stages.py scripts/stages/self_training.yaml
    python tools/run_stages.py scripts/stages/self_training.yaml --dry-run         SLURM commands of what is missing
    python tools/run_stages.py scripts/stages/self_training.yaml --smoke           the whole pipeline on synthetic data

Finished stages are left alone, an interrupted one goes on where it stopped. Arguments are those of
tools/reproduce_table.py; `output` is the folder of the stages (default: output/stages), and the first seed is taken.
What a file of stages holds is said in partseg/reproduce/stages.py.
"""

from partseg.reproduce.command import Reproduce, run_stages
from partseg.utils.arguments import run


def command() -> int:
    """The command line."""
    return run(run_stages, Reproduce, __doc__)
