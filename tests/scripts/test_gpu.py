"""`scripts/gpu.sh`, dry: the same code as on a GPU, at toy sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch

from mutransfer.records import TrialRecord

SCRIPT = Path(gpu.__file__).with_suffix(".sh")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All parts, run to the end."""
    folder = tmp_path_factory.mktemp("results")
    assert gpu.main(["all", "--dry", "--budget", "300", "--out", str(folder)]) == 0
    return folder


def read(folder: Path, part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{part}.json").read_text())
    return content


@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_runs_to_the_end_and_says_where(folder: Path, part: str) -> None:
    written = read(folder, part)
    assert written["part"] == part
    assert written["left"] == []
    assert written["environment"]["device"].endswith("CPU")
    assert written["environment"]["dry"] is True
    assert written["summary"] is not None
    for unit in written["units"].values():
        assert unit["device"] == written["environment"]["device"]
        assert unit["seconds"] > 0
        assert "result" in unit


def test_the_check_passes_mup_and_fails_sp(folder: Path) -> None:
    verdicts = {name: said["verdict"] for name, said in read(folder, "check")["summary"].items()}
    assert verdicts == {"mup adamw": "pass", "sp adamw": "fail"}


def test_the_sweep_keeps_trial_records_and_runs_the_base_once(folder: Path) -> None:
    records = [TrialRecord.from_json(unit["result"]) for unit in read(folder, "sweep")["units"].values()]
    grid = [(r.config["parameterization"]["name"], r.config["model"]["width"]) for r in records]
    assert {("mup", 16), ("mup", 32), ("sp", 32)} == set(grid)
    assert len({record.key for record in records}) == len(records)
    assert all(record.status == "done" for record in records)
    assert all(r.config["train"]["compile"] and r.config["precision"]["name"] == "bf16" for r in records)


def test_the_sweep_is_analyzed(folder: Path) -> None:
    transfer = read(folder, "sweep")["summary"]["transfer"]
    assert set(transfer["parameterizations"]) == {"mup", "sp"}
    assert set(transfer["parameterizations"]["sp"]["optimum"]) == {"16", "32"}  # the base is shared


def test_speeds_are_of_all_forms_in_both_modes(folder: Path) -> None:
    for part, key in (("throughput", "tokens_per_second"), ("overhead", "comparisons")):
        units = read(folder, part)["units"]
        assert [name.rsplit(" ", 1)[1] for name in units] == ["eager", "compiled"]
        assert all(unit["result"][key] for unit in units.values())
    for unit in read(folder, "throughput")["units"].values():
        assert set(unit["result"]["tokens_per_second"]) == {"plain", "folded", "explicit"}
        assert min(unit["result"]["tokens_per_second"].values()) > 0


def test_a_second_call_repeats_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {part: read(folder, part)["units"] for part in gpu.PARTS}
    assert gpu.main(["all", "--dry", "--budget", "300", "--out", str(folder)]) == 0
    assert {part: read(folder, part)["units"] for part in gpu.PARTS} == before
    assert "sweep: 10 of 10 were done before" in capsys.readouterr().out


def test_a_dry_run_compiles_and_leaves_the_compiler_as_it_was(folder: Path) -> None:
    assert all("compiled" in name for name in list(read(folder, "overhead")["units"])[1:])
    seen: list[bool] = []

    @torch.compile(backend=lambda graph, inputs: seen.append(True) or graph.forward)
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    double(torch.ones(1))
    assert seen == [True]


def test_without_budget_nothing_is_begun_and_all_is_left(tmp_path: Path) -> None:
    """As a user runs it; on a machine that has torch and little else."""
    for absent in ("hydra", "omegaconf", "wandb", "matplotlib", "transformers", "datasets", "sklearn"):
        (tmp_path / f"{absent}.py").write_text(f"raise ImportError('{absent} is not here')")
    ran = subprocess.run(
        ["bash", str(SCRIPT), "all", "--dry", "--budget", "0", "--out", str(tmp_path / "results")],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 3, ran.stderr
    assert "sweep: 10 of 10 left: mup width 16 lr 2^-8 seed 0," in ran.stdout
    for part in gpu.PARTS:
        written = read(tmp_path / "results", part)
        assert (written["units"], len(written["left"])) == ({}, (10 if part == "sweep" else 2))


def test_results_of_other_sizes_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = read(folder, "check") | {"settings": {"widths": [256, 512]}}
    (tmp_path / "check.json").write_text(json.dumps(written))
    assert gpu.main(["check", "--dry", "--out", str(tmp_path)]) == 2
    assert "was made with other settings" in capsys.readouterr().err


def test_no_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["check"]) == 2
    assert "There is no CUDA device here" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["chekc"], ["check", "--budget", "-1"], ["check", "--budget", "soon"]])
def test_bad_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize("part", gpu.PARTS)
def test_the_parts_for_a_gpu_have_the_units_that_they_should(part: str) -> None:
    entry = gpu.PARTS[part]
    made = entry.make(entry.settings, torch.device("cpu"))
    names = [unit.name for unit in made.units]
    assert len(names) == len(set(names))
    assert all(unit.guess >= 60 for unit in made.units)
    expected = {
        "check": {"mup adamw", "sp adamw"},
        "overhead": {"width 256 bf16 eager", "width 256 fp32 compiled"},
        "throughput": {"width 2048 bf16 compiled"},
        "sweep": {"mup width 2048 lr 2^-6 seed 1", "sp width 2048 lr 2^-14 seed 0"},
    }
    assert expected[part] <= set(names)


def test_the_widths_of_the_check_are_those_of_a_gpu() -> None:
    widths = gpu.PARTS["check"].settings.widths
    assert (min(widths), max(widths)) == (256, 4096)
