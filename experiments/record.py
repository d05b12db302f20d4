"""Keeps what a sweep came to: `python experiments/record.py RUN_DIR NAME` writes `experiments/results/NAME.json`."""

from __future__ import annotations

import sys
from pathlib import Path

from mutransfer.records import read_json, write_json

KEPT = ("key", "config", "status", "val_loss", "train_loss", "cpu_seconds")


def main(run_dir: str, name: str) -> None:
    """The verdict of `mutransfer transfer RUN_DIR`, and every trial that it rests on."""
    records = read_json(Path(run_dir) / "sweep.json")["records"]
    content = {
        "transfer": read_json(Path(run_dir) / "transfer.json"),
        "environment": records[0]["environment"],
        "cpu_seconds": sum(record["cpu_seconds"] for record in {r["key"]: r for r in records}.values()),
        "trials": [{key: record[key] for key in KEPT} for record in records],
    }
    print(write_json(Path(__file__).parent / "results" / f"{name}.json", content))


if __name__ == "__main__":
    main(*sys.argv[1:])
