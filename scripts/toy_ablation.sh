#!/usr/bin/env bash
# Which parts of PartCLIPSeg matter on the synthetic data: seven systems, three seeds each, then the attention terms
# at four weights on networks that are trained already; two tables and one figure.
# usage: bash scripts/toy_ablation.sh [overrides for every run, e.g. optimizer.lr=5e-4]
# Runs are shorter than the quickstart's: STEPS=800 and, on trained networks, MORE_STEPS=200, as in docs/toy_results.md.
# SEEDS="1 2 3 4 5" more seeds; JOBS=2 runs at a time, each on one core; OUT=output/toy_ablation where runs go.
# Finished runs are skipped, so a stopped ablation goes on where it was. Runs of other overrides need another OUT.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh plot

out=${OUT:-output/toy_ablation}
seeds=${SEEDS:-1 2 3}
jobs=${JOBS:-2}
steps=${STEPS:-800}
more_steps=${MORE_STEPS:-200}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

sep=criterion.terms.separation.weight
enh=criterion.terms.enhancement.weight
more="experiment=toy_part_clipseg train.iterations=$more_steps optimizer.lr=3e-4 init_from=@" # @: the same seed's no_attention
declare -A systems=(
    [clipseg]="experiment=toy_clipseg"
    [part_clipseg]="experiment=toy_part_clipseg"
    [no_object]="experiment=toy_part_clipseg criterion.terms.object.weight=0"
    [no_part]="experiment=toy_part_clipseg criterion.terms.part.weight=0"
    [no_separation]="experiment=toy_part_clipseg $sep=0"
    [no_enhancement]="experiment=toy_part_clipseg $enh=0"
    [no_attention]="experiment=toy_part_clipseg $sep=0 $enh=0"
    [more_none]="$more $sep=0 $enh=0"
    [more_own]="$more"
    [more_paper]="$more $sep=0.1 $enh=0.01"
    [more_ten]="$more $sep=1 $enh=0.1"
)
first=(clipseg part_clipseg no_object no_part no_separation no_enhancement no_attention)
second=(more_none more_own more_paper more_ten) # these start from the weights of no_attention

python datasets/draw_toy.py root=data/ToyPascalPart116

one() { # one system and seed: train, then evaluate, unless the result is there
    local system=$1 seed=$2; shift 2
    local run=$out/$system/seed$seed
    if [ -f "$run/results.json" ]; then echo "$run: finished before, kept"; return; fi
    mkdir -p "$run"
    local settings
    read -r -a settings <<<"train.iterations=$steps ${systems[$system]}"
    settings=("${settings[@]/@/$out/no_attention/seed$seed}" # where continued runs start
        "name=$system/seed$seed" "seed=$seed" "output_root=$out" data_root=data
        hooks.evaluate.every=1000000 hooks.visualize.every=1000000 'best.metrics=[]' "$@")
    echo "$run: training"
    if python tools/train_net.py "${settings[@]}" >"$run/console.txt" 2>&1 &&
        python tools/eval_net.py "${settings[@]}" "ckpt=$run" >>"$run/console.txt" 2>&1; then
        echo "$run: done"
    else
        echo "$run: FAILED, see $run/console.txt" >&2
        return 1
    fi
}

failed=0
all() { # every seed of the systems named before --, with the overrides after it
    local names=() seed system
    while [ "$1" != -- ]; do names+=("$1"); shift; done
    shift
    for seed in $seeds; do
        for system in "${names[@]}"; do
            while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || failed=1; done
            one "$system" "$seed" "$@" &
        done
    done
    while [ "$(jobs -rp | wc -l)" -gt 0 ]; do wait -n || failed=1; done
    [ "$failed" = 0 ] || { echo "some runs failed; start the same command again to go on" >&2; exit 1; }
}

trap 'trap - INT TERM; kill 0' INT TERM
all "${first[@]}" -- "$@"
all "${second[@]}" -- "$@"
python tools/toy_ablation.py "$out"
python tools/toy_attention.py "$out" data=data/ToyPascalPart116
