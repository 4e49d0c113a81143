#!/usr/bin/env bash
# From nothing to a small PartCLIPSeg on drawn pictures: install, draw the synthetic data, train from a small CLIP that
# comes with partseg, evaluate, compare with two plain baselines, show. No download but the packages.
# usage: bash scripts/quickstart.sh [overrides of configs/train.yaml, e.g. train.iterations=200]
# Everything that is finished is kept; after Ctrl-C the same command goes on from the last checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh "" # without the empty argument it would read ours

run=output/toy_part_clipseg
data=data/ToyPascalPart116
started=$SECONDS
settings=(experiment=toy_part_clipseg name=toy_part_clipseg data_root=data output_root=output "$@")

step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

step "1/5 synthetic Pascal-Part-116"
python datasets/draw_toy.py root="$data"
step "2/5 baselines"
python tools/toy_baselines.py "${settings[@]}"
step "3/5 training"
python tools/train_net.py "${settings[@]}"
step "4/5 evaluation"
if [ -d "$run/predictions" ] && [ -f "$run/results.json" ] && [ "$run/results.json" -nt "$run/checkpoints/latest.pt" ]; then
    echo "$run/results.json: evaluated before, kept"
else
    python tools/eval_net.py "${settings[@]}" "ckpt=$run" save_predictions=true
fi
step "5/5 report"
python tools/toy_report.py "$run" data="$data"

cat <<END

Done in $((SECONDS - started)) s. Where everything lies:
  $data                       the pictures and labels, provenance.json says how they were drawn
  $run/results.json       every score, per class too;  $run/log.txt, metrics.jsonl, config.yaml
  $run/unseen_objects.png      photo, truth and prediction of objects that training never named
  $run/pictures/          the same images while the network learned
What to run next:
  python tools/train_net.py --help                         all groups and choices
  python tools/train_net.py experiment=toy_clipseg         the baseline CLIPSeg on the same pictures
  bash scripts/toy_table.sh                                every system on the same pictures, three seeds (hours)
  datasets/README.md                                       the real data sets, then experiment=part_clipseg_pascal_part_116
END
