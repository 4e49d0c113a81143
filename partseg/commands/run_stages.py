"""Run trainings in stages: train, export predictions as labels, train on them, evaluate. One file says it all.

    partseg recipe scripts/stages/self_training.yaml
    partseg recipe scripts/stages/self_training.yaml --dry-run         SLURM commands of what is missing
    partseg recipe scripts/stages/self_training.yaml --smoke           the whole pipeline on synthetic data

Finished stages are left alone, an interrupted one goes on where it stopped. What a file of stages holds is said in
partseg/reproduce/stages.py. Arguments are key=value, after the files:
    seeds     the seed (default 1)
    output    folder of the stages (default: output/stages; smoke: output/smoke_stages)
    smoke     true: two steps per training on synthetic data, which tests the pipeline; needs a checkout
    dry_run   true: print SLURM commands of what is missing and run nothing
    num_gpus  GPUs per stage on this machine
    override  config override for every training, may be given several times: override=recipe=official
"""

from partseg.reproduce.command import Reproduce, run_stages
from partseg.utils.arguments import run


def command() -> int:
    """The command line."""
    return run(run_stages, Reproduce, __doc__)
