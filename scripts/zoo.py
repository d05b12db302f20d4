"""Every model there is, converted and checked. See `python scripts/zoo.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from zoo.command import main  # noqa: E402  (the package beside this file)

if __name__ == "__main__":
    sys.exit(main())
