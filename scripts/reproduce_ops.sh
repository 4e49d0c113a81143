#!/usr/bin/env bash
# Trains and evaluates what scripts/tables/ops_table*.yaml lack (OPS, tables 1 to 5), then prints them. The superpixels of
# table 5 need the superpixels extra. Start weights: --override init_from=<ImageNet resnet50 under torchvision's names>.
# usage: bash scripts/reproduce_ops.sh [--dry-run] [--smoke] [--seeds 1,2,3] [--num-gpus N]   (--help lists all)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ " $* " == *" --dry-run "* ]] && export partseg_no_install=1 # it only prints commands
source scripts/env.sh ops,superpixels
exec python tools/reproduce_table.py scripts/tables/ops_table*.yaml "$@"
