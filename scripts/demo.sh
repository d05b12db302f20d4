#!/usr/bin/env bash
# The whole job on real text: sweep muP and its controls over widths and learning rates, check, verdict, report.html.
# Takes 5 to 12 minutes on 2 cores, by their speed, after the first set-up. Interrupt it whenever you like: the next run goes on.
# Usage: bash scripts/demo.sh [RUN_DIR]        default: runs/demo
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "" # else the RUN_DIR would be its argument
run_dir=${1:-runs/demo}

mutransfer sweep experiment=demo run_dir="$run_dir"
mutransfer check model=gpt parameterization=mup 'widths=[64,128,256]' run_dir="$run_dir" || [ $? -ne 2 ]
mutransfer transfer "$run_dir" --target model.width=1024
