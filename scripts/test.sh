#!/usr/bin/env bash
# Installs partseg with the test extra into .venv and runs lint, type check and tests.
# usage: bash scripts/test.sh [--slow] [pytest arguments]       --slow adds the tests marked slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh test

marks="not slow and not browser and not gpu and not multi_gpu"
if [ "${1:-}" = "--slow" ]; then marks="not browser and not gpu and not multi_gpu"; shift; fi
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -ge 1 ]; then marks=${marks/ and not gpu/}; fi
if [ "$gpus" -ge 2 ]; then marks=${marks/ and not multi_gpu/}; fi

echo "== ruff";   ruff check . && ruff format --check .
echo "== mypy";   mypy
echo "== pytest"; exec python -m pytest -m "$marks" "$@"
