#!/usr/bin/env bash
# Proves a machine with GPUs: tests, errors against the CPU, overfit, a kill and a resume, N GPUs against one, then speed.
# usage: bash scripts/gpu_check.sh [output=DIR] [device=cuda|cpu] [minutes=10] [only=NAME]
# Writes DIR/gpu_check.json and DIR/gpu_check.md after every step. Without a GPU it says so and ends with exit code 0;
# device=cpu runs the same steps at tiny size, to see that the script works.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh test
exec python tools/gpu_check.py "$@"
