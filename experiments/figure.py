"""Draws a recorded sweep: `python experiments/figure.py experiments/results/width_transfer.json docs/demo.png`."""

from __future__ import annotations

import sys
from pathlib import Path

from mutransfer.records import read_json
from mutransfer.report.drawings import loss_drawings


def main(result: str, figure: str) -> None:
    """Loss against learning rate, one panel per parameterization, as in the sweep's own report."""
    _, png = loss_drawings(read_json(Path(result))["transfer"], "loss")
    Path(figure).write_bytes(png)


if __name__ == "__main__":
    main(*sys.argv[1:])
