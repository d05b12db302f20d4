"""`mutransfer transfer` on a planted sweep: the verdict is the exit code, and the printed command runs as it is."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest

from mutransfer.cli import main
from mutransfer.records import TrialRecord
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.points import expand
from mutransfer.sweep.store import FILE_NAME, Store

GRID = [
    "model.width=32,64,128",
    "optimizer.lr=" + ",".join(f"2**{k}" for k in range(-10, -2)),
    "seed=0,1",
    "model.depth=3",
]
DRIFT = {"mup": 0.0, "sp": -1.0}


def plant(run_dir: Path, *overrides: str) -> None:
    """A finished sweep whose best lr is 2^-6 at width 32 and moves by DRIFT octaves per doubling."""
    points = expand(Composer("sweep"), [*GRID, *overrides]).points(lambda config: "corpus")
    with Store.create(run_dir) as store:
        store.add("planted", points)
        while (claim := store.claim("planted", "me", 60)) is not None:
            store.finish("me", finished(claim.key, claim.config))


def finished(key: str, config: dict) -> TrialRecord:
    doublings = math.log2(config["model"]["width"] / 32)
    best = -6.1 + DRIFT[config["parameterization"]["name"]] * doublings
    octaves = math.log2(config["optimizer"]["lr"]) - best
    loss = 2.5 - 0.1 * doublings + 0.05 * octaves**2 + 0.003 * config["seed"]
    environment = {"data_sha256": "corpus"}
    return TrialRecord(key=key, config=config, status="done", val_loss=loss, environment=environment)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_transfers_is_said_and_its_target_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    plant(Path("run"), "parameterization=mup,sp", "hp.lr.input=8")
    assert main(["transfer", "run", "--target", "model.width=1024"]) == 0
    text = capsys.readouterr().out
    content = json.loads(Path("run/transfer.json").read_text())
    assert content["verdict"] == "transfers"
    assert {name: one["verdict"] for name, one in content["parameterizations"].items()} == {
        "mup": "transfers",
        "sp": "does not transfer",
    }
    assert "mup" in Path("run/report.html").read_text()
    command = content["target"]["command"]
    assert command in text
    assert main([*shlex.split(command)[1:], "--cfg"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["model"]["width"] == 1024
    assert config["model"]["depth"] == 3
    assert config["hp"]["lr"]["input"] == 8
    assert config["base"] == 32
    assert config["parameterization"]["name"] == "mup"
    assert math.log2(config["optimizer"]["lr"]) == pytest.approx(-6.1, abs=0.2)


def test_what_does_not_transfer_exits_with_1() -> None:
    plant(Path("run"), "parameterization=mup,sp")
    assert main(["transfer", "run", "subject=sp"]) == 1


def test_a_grid_that_is_too_small_is_undecided() -> None:
    plant(Path("run"), "parameterization=sp", "optimizer.lr=2**-7,2**-6,2**-5")
    assert main(["transfer", "run"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give the run_dir of one sweep"),
        (["a", "b"], "Give the run_dir of one sweep"),
        (["missing"], "missing does not exist"),
        (["folder"], "is not a run directory"),
        (["half"], "half-written"),
        (["empty"], "no finished trial"),
        (["run", "subject=mpu"], "Did you mean 'mup'"),
        (["run", "level=2"], "level=2.0"),
        (["run", "levle=0.9"], "Did you mean 'level'"),
        (["run", "--target", "width=1024"], "give a size"),
        (["run", "--target", "model.width=big"], "'big' is not a whole number"),
        (["run", "--target", "model.depth=12"], "has no rule for depth"),
        (["run", "--target"], "--target needs a value"),
    ],
)
def test_mistakes_get_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    Path("half").mkdir()
    Path("half", FILE_NAME).touch()
    Store.create("empty").close()
    if words[:1] == ["run"]:
        plant(Path("run"), "seed=0", "parameterization=mup")
    assert main(["transfer", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
