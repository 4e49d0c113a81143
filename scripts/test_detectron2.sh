#!/usr/bin/env bash
# Builds the real detectron2 against the torch that is installed and runs the bridge's tests against it; minutes to build.
# usage: bash scripts/test_detectron2.sh [pytest arguments]
# DETECTRON2=<git URL, or folder of its source> builds from elsewhere; a C++ compiler is needed, and nvcc for its GPU code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh test

if ! python -c 'import detectron2' 2>/dev/null; then
    # its build needs setuptools and the installed torch, hence no isolation
    python -m pip install --disable-pip-version-check -q 'setuptools<81' wheel ninja
    python -m pip install --disable-pip-version-check -q --no-build-isolation \
        "${DETECTRON2:-git+https://github.com/facebookresearch/detectron2.git}"
fi
python - <<'END'
from importlib import metadata
print(*(f"{name} {metadata.version(name)}" for name in ("detectron2", "fvcore", "torch", "numpy", "setuptools")), sep=", ")
END
exec python -m pytest tests/integrations "$@"
