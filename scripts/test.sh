#!/usr/bin/env bash
# All that must hold before a change lands: linter, format, types, import contract, tests.
# Usage: bash scripts/test.sh [PYTEST ARGUMENTS]       bash scripts/test.sh -m slow    runs the long suites instead
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" dev

if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null; then
    echo "Installing chromium, in which the report is tested ..."
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    { $sudo apt-get update -qq && $sudo apt-get install -y -qq chromium; } >/dev/null 2>&1 ||
        echo "chromium could not be installed: the tests of report.html will fail and say so." >&2
fi

ruff check .
ruff format --check .
mypy
lint-imports
pytest -n "${WORKERS:-2}" --dist worksteal "$@"
