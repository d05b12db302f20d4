#!/usr/bin/env bash
# The claim of the demo, recorded: sweeps `configs/experiment/demo.yaml` and keeps the verdict and every trial.
# Usage: bash experiments/width_transfer.sh [RUN_DIR]        resumable; 5 to 12 minutes on 2 cores
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh" "" # else the RUN_DIR would be its argument
run_dir=${1:-runs/width_transfer}

mutransfer sweep experiment=demo run_dir="$run_dir"
mutransfer transfer "$run_dir" --target model.width=1024
python experiments/record.py "$run_dir" width_transfer
