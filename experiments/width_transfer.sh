#!/usr/bin/env bash
# The claim of the demo, recorded: sweeps `configs/experiment/demo.yaml` and keeps the verdict and every trial.
# Usage: bash experiments/width_transfer.sh [RUN_DIR]        resumable; about 8 minutes on 2 cores
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
run_dir=${1:-runs/width_transfer}

mutransfer sweep experiment=demo run_dir="$run_dir"
mutransfer transfer "$run_dir" --target model.width=1024
python - "$run_dir" <<'PYTHON'
import sys
from pathlib import Path

from mutransfer.records import read_json, write_json

run_dir = Path(sys.argv[1])
records = read_json(run_dir / "sweep.json")["records"]
kept = ("key", "config", "status", "val_loss", "train_loss", "cpu_seconds")
write_json(
    "experiments/results/width_transfer.json",
    {
        "transfer": read_json(run_dir / "transfer.json"),
        "environment": records[0]["environment"],
        "cpu_seconds": sum(record["cpu_seconds"] for record in {r["key"]: r for r in records}.values()),
        "trials": [{name: record[name] for name in kept} for record in records],
    },
)
PYTHON
