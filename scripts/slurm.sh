#!/usr/bin/env bash
# Trains under SLURM, on one machine or several, and comes back by itself after a time limit or a preemption.
#   sbatch --nodes 2 --gpus-per-node 8 scripts/slurm.sh experiment=part_clipseg_pascal_part_116
#   sbatch scripts/slurm.sh -m partseg eval ckpt=output/run ...       another command
#   sbatch scripts/slurm.sh tools/benchmark.py ...                    another program, if the first argument is one
# Ninety seconds before the end SLURM sends SIGTERM to this script, which passes it on; the training finishes its step
# and saves, and the job goes back into the queue. The same command then continues from the checkpoint.
#SBATCH --job-name=partseg
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?start this script with sbatch}"

program=(-m partseg train)
if [[ "${1:-}" == -m || "${1:-}" == *.py ]]; then program=(); fi # what follows names one

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
gpus=${SLURM_GPUS_ON_NODE:-1}
# two jobs may share a machine: each job number has its own port, below those that Linux hands out by itself
port=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=85  # torchrun kills its processes 30 s after a signal unless told otherwise
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$gpus" --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d --rdzv-endpoint "$head_node:$port" "${program[@]}" "$@" &
training=$!

# SLURM's signal comes to this script alone (B:); scancel passes it to the training and its data workers
stopped=false
trap 'stopped=true; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

wait "$training"
code=$?
if $stopped; then
    wait "$training"  # the trap ended the first wait: now the step and the checkpoint are finished
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
