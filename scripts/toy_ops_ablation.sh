#!/usr/bin/env bash
# What OPS' two ways to learn from pictures without part labels give on the synthetic data: base, the same steps more,
# self-training, self-supervision, both; AP on objects whose parts were never labelled, mean and standard error.
# usage: bash scripts/toy_ops_ablation.sh [--override key=value ...]
# SEEDS="1 2 3 4 5" more seeds; JOBS=2 seeds at a time, each on one core; OUT=output/toy_ops_ablation where runs go;
# ADAPT=ToyPascalPart116 adapts to the pictures that are scored (transductive) instead of others (inductive).
# Finished stages are skipped, so a stopped ablation goes on where it was. Other overrides, or ADAPT, need another OUT.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh ops

out=${OUT:-output/toy_ops_ablation}
adapt=${ADAPT:-ToyOpenParts}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

python datasets/draw_toy.py root=data/ToyPascalPart116
python datasets/draw_toy.py root=data/ToyOpenParts num_train=1 num_val=200 seed=1
mkdir -p "$out"
sed "s|/ToyOpenParts$|/$adapt|" scripts/stages/toy_open_parts.yaml >"$out/toy_open_parts.yaml"

failed=0
trap 'trap - INT TERM; kill 0' INT TERM
for seed in ${SEEDS:-1 2 3}; do
    while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-1}" ]; do wait -n || failed=1; done
    echo "seed $seed: $out/seed$seed/console.txt"
    mkdir -p "$out/seed$seed"
    python tools/run_stages.py "$out/toy_open_parts.yaml" output="$out/seed$seed" seeds="$seed" "$@" \
        >>"$out/seed$seed/console.txt" 2>&1 &
done
while [ "$(jobs -rp | wc -l)" -gt 0 ]; do wait -n || failed=1; done
[ "$failed" = 0 ] || { echo "some stages failed, see console.txt; start the same command again to go on" >&2; exit 1; }
python tools/toy_ops_ablation.py "$out"
