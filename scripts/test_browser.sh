#!/usr/bin/env bash
# Drives tools/demo.py and the page of tools/visualize_results.py in a real headless browser.
# Installs Debian's chromium when it is missing (needs root for that), and the demo extra and playwright into $PYTHON.
#   bash scripts/test_browser.sh            PYTHON=.venv/bin/python by default
# Screenshots are left in the folder that is printed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}

if ! command -v chromium > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
fi
if ! "$PYTHON" -c 'import gradio, playwright' 2> /dev/null; then
    torch=$("$PYTHON" -c 'import torch; print(torch.__version__.split("+")[0])')
    "$PYTHON" -m pip install --quiet -e '.[demo,test]' playwright "torch==$torch"
fi
PARTSEG_SCREENSHOTS=${PARTSEG_SCREENSHOTS:-$(mktemp -d)}
export PARTSEG_SCREENSHOTS
"$PYTHON" -m pytest -m browser tests/browser "$@"
echo "screenshots: $PARTSEG_SCREENSHOTS"
