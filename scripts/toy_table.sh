#!/usr/bin/env bash
# Every system on the synthetic data, and PartCLIPSeg without one term at a time: three seeds each, one table, one figure.
# usage: bash scripts/toy_table.sh [overrides for every training, e.g. optimizer.lr=5e-4]
# All trainings see as many pictures: IMAGES=1600 (with repetition), as in docs/toy_results.md.
# SYSTEMS="part_clipseg cat_seg" only these; SEEDS="1 2 3 4 5" more seeds; JOBS=2 runs at a time, each on one core;
# OUT=output/toy_table where runs go.
# Finished runs are skipped, so a stopped table goes on where it was. Runs of other overrides need another OUT.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh plot

out=${OUT:-output/toy_table}
seeds=${SEEDS:-1 2 3}
jobs=${JOBS:-2}
images=${IMAGES:-1600}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

sep=criterion.terms.separation.weight
enh=criterion.terms.enhancement.weight
declare -A trained=( # how a system is trained: pictures per step, then overrides
    [clipseg]="4 experiment=toy_clipseg"
    [part_clipseg]="4 experiment=toy_part_clipseg"
    [cat_seg]="4 experiment=toy_cat_seg"
    [part_cat_seg]="4 experiment=toy_part_cat_seg"
    [vlpart]="4 experiment=toy_vlpart"
    [cris]="16 experiment=toy_cris"
    [ops]="8 experiment=toy_ops"
    [random_towers]="4 experiment=toy_part_clipseg init_from=null model.backbone.spread_text=true allow_random=true"
    [no_object]="4 experiment=toy_part_clipseg criterion.terms.object.weight=0"
    [no_part]="4 experiment=toy_part_clipseg criterion.terms.part.weight=0"
    [no_separation]="4 experiment=toy_part_clipseg $sep=0"
    [no_enhancement]="4 experiment=toy_part_clipseg $enh=0"
    [no_attention]="4 experiment=toy_part_clipseg $sep=0 $enh=0"
    [paper_attention]="4 experiment=toy_part_clipseg $sep=0.1 $enh=0.01"
)
declare -A scored=( # how what was trained is scored, where not as it was watched: the training's name, then overrides
    [cris]="cris evaluator=default"
    [cris_phrases]="cris evaluator=referring eval.phrases=true"
    [vlpart]="vlpart evaluator=parts_and_pixels eval.instances=classes"
    [part_clipseg_object_first]="part_clipseg predictor.object_first=true"
    [cat_seg_object_first]="cat_seg predictor.object_first=true"
    [part_cat_seg_object_first]="part_cat_seg predictor.object_first=true"
    [ops]="ops evaluator=open_parts eval.instances=classes"
    [ops_named]="ops names=$out/part_clipseg/@ evaluator=oracle_obj"
)
systems=${SYSTEMS:-clipseg part_clipseg cat_seg part_cat_seg vlpart cris ops part_clipseg_object_first
    cat_seg_object_first part_cat_seg_object_first cris_phrases ops_named random_towers no_object no_part no_separation
    no_enhancement no_attention paper_attention}

python datasets/draw_toy.py root=data/ToyPascalPart116

train() { # one system and seed, unless its last checkpoint is there
    local system=$1 seed=$2; shift 2
    local run=$out/$system/seed$seed batch settings
    if [ -f "$run/trained" ]; then return; fi
    mkdir -p "$run"
    read -r batch settings <<<"${trained[$system]}"
    read -r -a settings <<<"$settings"
    echo "$run: training"
    python tools/train_net.py "${settings[@]}" "name=$system/seed$seed" "seed=$seed" "output_root=$out" data_root=data \
        "train.iterations=$((images / batch))" hooks.evaluate.every=1000000 hooks.visualize.every=1000000 \
        'best.metrics=[]' "$@" >"$run/console.txt" 2>&1 && touch "$run/trained"
}

score() { # one system and seed: train what it is made of, then evaluate, unless the result is there
    local system=$1 seed=$2; shift 2
    local run=$out/$system/seed$seed from=$system settings=()
    if [ -f "$run/scored" ]; then echo "$run: finished before, kept"; return; fi
    mkdir -p "$run"
    if [ -n "${scored[$system]:-}" ]; then
        read -r from settings <<<"${scored[$system]}"
        read -r -a settings <<<"${settings//@/seed$seed}"
    fi
    if train "$from" "$seed" "$@" &&
        python tools/eval_net.py "ckpt=$out/$from/seed$seed" "output=$run" data_root=data eval.batch_size=10 \
            eval.num_workers=0 "${settings[@]}" >>"$run/console.txt" 2>&1; then
        touch "$run/scored"
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
            score "$system" "$seed" "$@" &
        done
    done
    while [ "$(jobs -rp | wc -l)" -gt 0 ]; do wait -n || failed=1; done
    [ "$failed" = 0 ] || { echo "some runs failed; start the same command again to go on" >&2; exit 1; }
}

first=() second=()
for system in $systems; do
    if [ -n "${trained[$system]:-}" ]; then first+=("$system")
    elif [ -n "${scored[$system]:-}" ]; then second+=("$system")
    else echo "no system $system: there are ${!trained[*]} ${!scored[*]}" >&2; exit 2
    fi
done
trap 'trap - INT TERM; kill 0' INT TERM
all "${first[@]}" -- "$@"
all "${second[@]}" -- "$@" # these score what the first have trained
python tools/toy_table.py "$out"
python tools/toy_attention.py "$out" data=data/ToyPascalPart116
