#!/usr/bin/env bash
# The whole way from raw files to pictures at the paper's model size, on a few photos: prepare, start weights, some steps of
# the paper's recipe with their speed, an overfit that must reach an oracle_obj mIoU above 60, both protocols, prediction.
# usage: bash scripts/real_smoke.sh [RAW_PASCAL_DIR [ADE20K_DIR]] [options]
#   RAW_PASCAL_DIR  folder with Annotations_Part/ and VOCdevkit/ (default ../shared/samples/pascal_part)
#   ADE20K_DIR      folder of the full ADE20K release (default ../shared/samples/ade20k_full); a missing one is left out
#   --weights W     start weights: a CLIPSeg file or hub name (default: random ones in the same format, made here)
#   --output DIR    default output/real_smoke; the same command continues what was stopped
#   --steps N       steps of the paper's recipe (default 12)     --batch N   photos per step of it (default 8; 1 on a CPU)
#   --overfit-steps N                                            --least M   mIoU that the overfit must exceed (default 60)
#   --photos "ID ..."  --ade-photo ID    what is overfitted
#   --model NAME    file of configs/model (default part_clipseg, the paper's size)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

raw=() weights="" output=output/real_smoke steps=12 batch="" overfit_steps="" least=60 model=part_clipseg
photos="2010_002065 2010_005275" ade_photo=ADE_train_00016964
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0 ;;
        --*) [ $# -ge 2 ] || { echo "$1 needs a value; see --help" >&2; exit 2; } ;;&
        --weights) weights=$2; shift 2 ;;
        --output) output=$2; shift 2 ;;
        --steps) steps=$2; shift 2 ;;
        --batch) batch=$2; shift 2 ;;
        --overfit-steps) overfit_steps=$2; shift 2 ;;
        --least) least=$2; shift 2 ;;
        --photos) photos=$2; shift 2 ;;
        --ade-photo) ade_photo=$2; shift 2 ;;
        --model) model=$2; shift 2 ;;
        --*) echo "there is no option $1; see --help" >&2; exit 2 ;;
        *) raw+=("$1"); shift ;;
    esac
done
pascal=${raw[0]:-../shared/samples/pascal_part}
ade=${raw[1]:-../shared/samples/ade20k_full}
if [ ! -d "$pascal" ]; then
    echo "no raw Pascal-Part files at $pascal: give the folder that holds Annotations_Part/ and VOCdevkit/" >&2
    echo "(datasets/README.md says where to get them)" >&2
    exit 3
fi
if [ -n "$weights" ] && [[ "$weights" == *.* ]] && [ ! -f "$weights" ]; then
    echo "no weights file $weights" >&2; exit 3
fi
source scripts/env.sh "" # without the empty argument it would read ours
if [ -z "$batch" ]; then
    batch=$(python -c 'import torch; print(8 if torch.cuda.is_available() else 1)')
fi

say() { printf '\n== %s\n' "$*"; }
data=$output/data runs=$output/runs
mkdir -p "$output"

say "1. prepare"
python datasets/prepare_pascal_part.py annotations="$pascal" voc="$pascal/VOCdevkit" clip_to_voc=available \
    output="$data/PascalPart116"
if [ -d "$ade" ]; then
    python datasets/prepare_ade20k_part.py ade20k="$ade" output="$data/ADE20KPart234"
else
    echo "no ADE20K at $ade: its photo is left out"
fi

say "2. start weights"
if [ -z "$weights" ]; then
    weights=$output/random.safetensors
    [ -f "$weights" ] || python tools/random_weights.py output="$weights" model="$model"
    echo "RANDOM WEIGHTS: the scores below show that the code works, not what the method can do"
fi
common=(model="$model" init_from="$weights" data_root="$data" output_root="$runs" train.num_workers=0 eval.num_workers=0)

say "3. $steps steps of the paper's recipe, $batch photos per step"
python tools/train_net.py experiment=part_clipseg_pascal_part_116 "${common[@]}" name=recipe keep=1 \
    train.iterations="$steps" train.batch_size="$batch" best.metrics=[] hooks.log.every=1 eval.limit_images=2 eval.batch_size=1
python tools/real_smoke.py speed "$runs/recipe"

overfit() { # name of the data set, its folder, experiment, name of the run, photos
    local dataset=$1 folder=$2 experiment=$3 run=$4 chosen few
    shift 4
    chosen=$(python tools/real_smoke.py choose "$dataset" "$folder" "$@")
    mapfile -t few <<<"$chosen"
    few+=(experiment="$experiment" debug=real_overfit "${common[@]}" train.batch_size=$#)
    if [ -n "$overfit_steps" ]; then few+=(train.iterations="$overfit_steps"); fi
    python tools/train_net.py "${few[@]}" name="$run"
    python tools/real_smoke.py speed "$runs/$run"
    python tools/eval_net.py "${few[@]}" name="$run" ckpt="$runs/$run" save_predictions=true
    python tools/real_smoke.py overlays "$runs/$run" "$output/$run.png"
    python tools/real_smoke.py check "$runs/$run" "$least"
}

say "4. overfit $photos"
# shellcheck disable=SC2086  # one word per photo
overfit pascal_part_116 "$data/PascalPart116" part_clipseg_pascal_part_116 overfit_pascal $photos

say "5. predict"
inputs=()
for photo in $photos; do inputs+=(input="$data/PascalPart116/images/train/$photo.jpg"); done
python tools/predict.py ckpt="$runs/overfit_pascal" "${inputs[@]}" output="$output/predictions"

if [ -d "$ade" ]; then
    say "6. overfit $ade_photo of ADE20K"
    overfit ade20k_part_234 "$data/ADE20KPart234" part_clipseg_ade20k_part_234 overfit_ade "$ade_photo"
    python tools/predict.py ckpt="$runs/overfit_ade" input="$data/ADE20KPart234/images/training/$ade_photo.jpg" \
        output="$output/predictions_ade"
fi

say "done: look at $output/overfit_*.png (photo, truth, predictions) and $output/predictions"
