#!/usr/bin/env bash
# Installs partseg with the test extra into .venv and runs lint, type check and tests.
# usage: bash scripts/test.sh [--slow] [pytest arguments]       --slow adds the tests marked slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh test

marks="not slow and not browser and not gpu and not multi_gpu"
if [ "${1:-}" = "--slow" ]; then marks="not browser and not gpu and not multi_gpu"; shift; fi
if python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then marks=${marks/ and not gpu/}; fi

echo "== ruff";   ruff check . && ruff format --check .
echo "== mypy";   mypy
echo "== pytest"; exec python -m pytest -m "$marks" "$@"
