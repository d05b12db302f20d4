#!/usr/bin/env bash
# What has to be measured on a GPU, in parts that can be cut short and continued; needs PyTorch, installs nothing.
# Usage: bash scripts/gpu.sh [check|overhead|throughput|sweep|all] --budget SECONDS [--out DIR] [--dry]
set -euo pipefail
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

has_torch() {
    "$1" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "numpy", "einops"))))' 2>/dev/null
}

for python in ${PYTHON:+"$PYTHON"} "$scripts/../.venv/bin/python" python3 python; do
    if has_torch "$python"; then
        exec "$python" "$scripts/gpu.py" "$@"
    fi
done
echo "gpu.sh: no Python with torch, numpy and einops was found. Name one: PYTHON=/path/to/python bash scripts/gpu.sh" >&2
exit 2
