"""scripts/demo.sh, with stand-ins for Python and the program in its virtual environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def stand_in(path: Path, words: str) -> None:
    path.write_text(f'#!/bin/sh\necho {words} "$@"\n')
    path.chmod(0o755)


def test_a_run_dir_of_ones_own_is_no_extra_to_install(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path / "bin" / "python", "python")
    stand_in(tmp_path / "bin" / "mutransfer", "mutransfer")
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "demo.sh"), "runs/mine"],
        env={**os.environ, "VENV": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ran = done.stdout.splitlines()
    assert [line.split(" -e ")[1] for line in ran if " -e " in line] == ["."]
    assert [line.split()[1] for line in ran if line.startswith("mutransfer")] == ["sweep", "check", "transfer"]
    assert all("runs/mine" in line for line in ran if line.startswith("mutransfer"))
