# Sourced by the other scripts: installs partseg into the active environment (venv, or conda but its base), or into a virtual
# environment at .venv in the checkout where none is active. partseg_no_install=1 only looks for one and installs nothing.
# usage: source scripts/env.sh EXTRAS     e.g. `source scripts/env.sh test`, `source scripts/env.sh ""`
# PYTHON=python3.12 picks the interpreter; an install is repeated only when pyproject.toml or the extras change.

partseg_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
partseg_extras=${1:-}
case $partseg_extras in *[!a-z0-9,]*) # a sourced file without arguments reads those of its caller
    echo "scripts/env.sh: '$partseg_extras' is no list of extras; source it with extras of pyproject.toml or with \"\"" >&2; exit 1 ;;
esac

partseg_venv=${VIRTUAL_ENV:-}
if [ -z "$partseg_venv" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then partseg_venv=${CONDA_PREFIX:-}; fi
partseg_venv=${partseg_venv:-$partseg_root/.venv}

_partseg_install() {
    local venv=$partseg_venv stamp want
    if [ -n "${partseg_no_install:-}" ]; then return 0; fi
    stamp=$venv/.partseg-installed
    if [ ! -x "$venv/bin/python" ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
            { echo "partseg needs Python 3.10 or newer; set PYTHON=/path/to/python3.x" >&2; return 1; }
        echo "Making a virtual environment in $venv"
        "${PYTHON:-python3}" -m venv "$venv" || return 1
    fi
    want="$(cat "$partseg_root/pyproject.toml" | cksum) extras:$partseg_extras"
    # one line per set of extras that was installed for this pyproject.toml
    if [ -f "$stamp" ] && grep -qxF "$want" "$stamp"; then return 0; fi
    echo "Installing partseg${partseg_extras:+[$partseg_extras]} (torch included: several GB the first time)"
    # torch, torchvision and open_clip_torch in one command, so that pip picks builds that fit each other
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off -q \
        torch torchvision open_clip_torch -e "$partseg_root${partseg_extras:+[$partseg_extras]}" || return 1
    echo "$want" >>"$stamp"
}

_partseg_install || { echo "The installation failed; nothing else was changed. Run the command again to go on." >&2; exit 1; }
export PATH=$partseg_venv/bin:$PATH
