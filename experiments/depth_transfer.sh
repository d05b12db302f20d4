#!/usr/bin/env bash
# Learning rate transfer over depth, recorded: sweeps `configs/experiment/depth_transfer.yaml`, keeps verdict and trials.
# Usage: bash experiments/depth_transfer.sh [RUN_DIR]        resumable; about 15 CPU-minutes
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh" "" # else the RUN_DIR would be its argument
run_dir=${1:-runs/depth_transfer}

mutransfer sweep experiment=depth_transfer run_dir="$run_dir"
mutransfer transfer "$run_dir" subject=completep --target model.depth=32 || [ $? -ne 2 ]
python experiments/record.py "$run_dir" depth_transfer
