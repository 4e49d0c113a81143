#!/usr/bin/env bash
# Trains and evaluates every run of scripts/tables/vlpart_table*.yaml (tables 1 to 7) that has no finished result, then
# prints the tables.
# usage: bash scripts/reproduce_vlpart.sh [--dry-run] [--smoke] [--seeds 1,2,3] [--num-gpus N]   (--help lists all)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ " $* " == *" --dry-run "* ]] && export partseg_no_install=1 # it only prints commands
source scripts/env.sh "" # without the empty argument it would read ours
exec python tools/reproduce_table.py scripts/tables/vlpart_table*.yaml "$@"
