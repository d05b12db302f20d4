"""`mutransfer check` hands the config to the coordinate check and its verdict to the shell."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import mutransfer.check
from mutransfer.cli import main
from mutransfer.records import write_json, write_text

TINY = ["model.depth=1", "data.batch_size=2", "data.seq_len=16"]


@dataclasses.dataclass(frozen=True)
class Report:
    """What the verb needs of a `CoordReport`."""

    exit_code: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return "coordinate check: PLANTED"

    def save(self, path: Path) -> Path:
        return write_json(path, {"verdict": "planted", "settings": self.settings})

    def plot(self, path: Path) -> Path:
        return write_text(path, "a picture")


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the verb gave to a coordinate check; `given["exit_code"]` decides what that comes to."""
    given: dict[str, Any] = {"exit_code": 0}

    def planted(build: Any, **options: Any) -> Report:
        given.update(options, build=build)
        options["progress"](1, 2)
        return Report(given["exit_code"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mutransfer.check, "coord_check", planted)
    return given


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_verdict_is_printed_saved_and_the_exit_code(
    given: dict[str, Any], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    given["exit_code"] = code
    assert main(["check", "run_dir=out", *TINY]) == code
    assert "PLANTED" in capsys.readouterr().out
    assert json.loads(Path("out/check.json").read_text())["verdict"] == "planted"
    assert Path("out/check.png").is_file()


def test_the_check_gets_what_the_config_says(given: dict[str, Any]) -> None:
    words = ["widths=[32,64,2**7]", "seeds=5", "steps=3", "lr=2**-7", "base=16", "parameterization=mup-table3"]
    main(["check", *words, "parameterization.form=explicit", "hp.output_mult=2", "precision=bf16", *TINY])
    assert (given["widths"], given["seeds"], given["steps"], given["lr"]) == ([32, 64, 128], 5, 3, 2**-7)
    assert (given["parameterization"], given["form"], given["base"]) == ("mup-table3", "explicit", 16)
    assert (given["optimizer"], given["precision"]) == ("adamw", "bf16")
    assert given["hyperparameters"]["output_mult"] == 2
    assert "batches" not in given


def test_depths_vary_at_the_models_own_width(given: dict[str, Any]) -> None:
    words = ["depths=[2,4,8]", "model.width=64", "parameterization=completep", "base_depth=2"]
    main(["check", "run_dir=out", *words, *TINY])
    assert (given["depths"], given["widths"], given["base_depth"]) == ([2, 4, 8], [64], 2)
    assert [len(given["build"](64, depth).blocks) for depth in (2, 4)] == [2, 4]
    saved = json.loads(Path("out/check.json").read_text())["settings"]
    assert (saved["model.width"], saved["base_depth"], "model.depth" in saved) == (64, 2, False)


def test_what_was_checked_is_saved_with_it(given: dict[str, Any]) -> None:
    main(["check", "run_dir=out", "model.depth=3", "base=16", "optimizer=sgd", "parameterization=mup-table3"])
    saved = json.loads(Path("out/check.json").read_text())["settings"]
    assert (saved["model.name"], saved["model.depth"], saved["base"]) == ("gpt", 3, 16)
    assert (saved["parameterization.name"], saved["optimizer.name"]) == ("mup-table3", "sgd")
    assert not {"model.width", "optimizer.lr", "seed"} & set(saved)


def test_models_are_drawn_from_the_checks_own_seed(given: dict[str, Any]) -> None:
    main(["check", *TINY])
    torch.manual_seed(1)
    first = given["build"](64).embedding.weight
    second = given["build"](64).embedding.weight
    torch.manual_seed(1)
    assert torch.equal(given["build"](64).embedding.weight, first)
    assert not torch.equal(first, second)
    assert first.shape[1] == 64


def test_the_datas_own_batches_are_there_when_asked_for(given: dict[str, Any]) -> None:
    main(["check", "full_batch=true", *TINY])
    inputs, targets = given["batches"](3)
    assert inputs.shape == targets.shape == (2, 16)
    assert given["loss"](given["build"](32), (inputs, targets)).item() > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["widths=[64,128]"], "at least three different widths"),
        (["widths=[64,128,250]"], "model.width=250 must be a multiple of model.head_dim=16"),
        (["widths=64"], "widths"),
        (["depths=[2,4]"], "at least three different depths"),
        (["depths=[2,4,8]", "widths=[64,128,256]"], "both given"),
        (["seeds=1"], "at least two seeds"),
        (["steps=1"], "at least two are needed"),
        (["lr=0"], "lr=0.0: it must be greater than 0"),
        (["width=[64,128,256]"], "Did you mean"),
    ],
)
def test_mistakes_get_one_sentence(
    given: dict[str, Any], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "build" not in given
