#!/usr/bin/env bash
# Makes the project's own virtual environment in .venv; sourced by demo.sh and test.sh. Does nothing if it is up to date.
# Usage: source scripts/setup.sh [EXTRA]        EXTRA: an extra of pyproject.toml, such as dev
# PYTHON chooses the interpreter (3.11 to 3.13), VENV another place for the environment.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=${VENV:-$root/.venv}
python=${PYTHON:-python3}
extra=${1:-}

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "mutransfer needs Python 3.11 to 3.13; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.12." >&2
    exit 2
}

constraints=()
command -v nvidia-smi >/dev/null || constraints=(-c scripts/constraints-cpu.txt)
stamp=$(cat pyproject.toml scripts/constraints-cpu.txt | cksum)
installed() { [ "$(cat "$venv/.stamp-$1" 2>/dev/null)" = "$stamp" ]; }
if ! installed "$extra" && { [ -n "$extra" ] || ! installed dev; }; then
    echo "Setting up $venv (once; about a minute, most of it torch) ..."
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    # torch first and alone: with a constraint pip would otherwise look at every newer release of it
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "${constraints[@]}" torch
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "${constraints[@]}" -e ".${extra:+[$extra]}"
    # mup, the reference of the parity tests, asks for torchvision, whose wheels need not match this torch; it uses none
    [ "$extra" != dev ] || "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps mup==1.0.0
    echo "$stamp" >"$venv/.stamp-$extra"
fi
export PATH="$venv/bin:$PATH" OMP_NUM_THREADS=1
