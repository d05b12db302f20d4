"""A real sweep that is killed in the middle ends with the numbers of one that was not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mutransfer.errors import RunError
from mutransfer.sweep.store import Store

SWEEP = ["sweep", "model.width=32,64", "optimizer.lr=2**-7,2**-6", "seed=0,1", "train.steps=60", "train.eval_batches=2"]


def results(run_dir: Path) -> dict[str, object]:
    with Store.open(run_dir) as store:
        return {record.key: (record.val_loss, record.history) for record in store.records()}


def finished(run_dir: Path) -> int:
    try:
        return len(results(run_dir))
    except RunError:
        return 0


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_numbers(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert command(*SWEEP, "run_dir=whole").returncode == 0
    parts = tmp_path / "parts"
    driver = subprocess.Popen([sys.executable, "-m", "mutransfer", *SWEEP, f"run_dir={parts}"], cwd=tmp_path)
    while finished(parts) < 3:
        assert driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    time.sleep(1)  # its workers end as soon as they see it gone
    before = results(parts)
    assert 3 <= len(before) < 8
    again = command(*SWEEP, f"run_dir={parts}")
    assert again.returncode == 0
    assert f"8 trials, {len(before)} of them finished before." in again.stdout
    assert results(parts) == results(tmp_path / "whole")
