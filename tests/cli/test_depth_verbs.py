"""Depth as a direction of growth, from the command line: sweep, verdict, report, and a target that can be trained."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest

from mutransfer.cli import main
from mutransfer.records import TrialRecord, read_json
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.points import expand
from mutransfer.sweep.store import Store

GRID = [
    "model.width=64",
    "base=64",
    "model.depth=2,4,8,16",
    "optimizer.lr=" + ",".join(f"2**{k}" for k in range(-9, -2)),
    "seed=0,1",
]
DRIFT = {"mup": -0.5, "depth-mup": 0.0, "completep": 0.0}
TINY = ["train.steps=3", "train.eval_batches=1", "data.batch_size=2", "data.seq_len=16", "engine.workers=1"]


def plant(run_dir: str, *overrides: str) -> None:
    """A finished sweep whose best lr is 2^-6.1 at depth 2 and moves by DRIFT octaves per doubling of the depth."""
    points = expand(Composer("sweep"), [*GRID, *overrides]).points(lambda config: "corpus")
    with Store.create(run_dir) as store:
        store.add("planted", points)
        while (claim := store.claim("planted", "me", 60)) is not None:
            store.finish("me", finished(claim.key, claim.config))


def finished(key: str, config: dict) -> TrialRecord:
    doublings = math.log2(config["model"]["depth"] / 2)
    best = -6.1 + DRIFT[config["parameterization"]["name"]] * doublings
    loss = 2.5 - 0.1 * doublings + 0.05 * (math.log2(config["optimizer"]["lr"]) - best) ** 2 + 0.003 * config["seed"]
    return TrialRecord(key=key, config=config, status="done", val_loss=loss, environment={"data_sha256": "corpus"})


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_transfers_over_depth_is_said_and_its_target_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    plant("run", "parameterization=mup,depth-mup,completep")
    assert main(["transfer", "run", "subject=completep", "--target", "model.depth=32"]) == 0
    text, content = capsys.readouterr().out, read_json(Path("run/transfer.json"))
    assert text.startswith("completep: transfers over depth")
    assert content["axis"] == "depth"
    assert {name: one["verdict"] for name, one in content["parameterizations"].items()} == {
        "mup": "does not transfer",
        "depth-mup": "transfers",
        "completep": "transfers",
    }
    page = Path("run/report.html").read_text()
    assert "the best learning rate at depth 2 is still the best at depth 16" in page
    assert "Best learning rate against depth" in page
    assert "each time the depth doubles" in page
    command = content["target"]["command"]
    assert command in text
    assert main([*shlex.split(command)[1:], "--cfg"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["model"]["depth"], config["model"]["width"], config["base_depth"]) == (32, 64, 2)
    assert config["parameterization"]["name"] == "completep"
    assert {"lr of hidden, inner", "lr of hidden, terminal"} <= {one["key"] for one in content["target"]["roles"]}
    assert main(["transfer", "run", "subject=mup"]) == 1


def test_the_line_that_extends_the_grid_goes_on_over_depth(capsys: pytest.CaptureFixture[str]) -> None:
    plant("run", "parameterization=completep", "optimizer.lr=2**-6,2**-5,2**-4", "base_depth=4")
    assert main(["transfer", "run"]) == 3
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Add: " in line]
    words = shlex.split(line.partition("Add: ")[2])
    assert {"model.depth=2,4,8,16", "base_depth=4", "parameterization=completep"} <= set(words)
    assert {c["base_depth"] for c in expand(Composer("sweep"), words[2:]).configs} == {4}


def test_where_width_and_depth_were_swept_the_axis_must_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    plant("run", "parameterization=completep", "model.width=64,128", "model.depth=2,4")
    assert main(["transfer", "run"]) == 2
    error = capsys.readouterr().err
    assert "vary in width and in depth" in error
    assert "axis=width or axis=depth" in error
    assert error.count("\n") == 1
    assert main(["transfer", "run", "axis=depth"]) == 0
    assert main(["transfer", "run", "axis=width"]) == 0
    assert main(["transfer", "run", "axis=deep"]) == 2
    assert "Did you mean 'depth'" in capsys.readouterr().err


def test_a_depth_that_no_rule_reaches_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    plant("run", "parameterization=mup", "model.depth=2", "model.width=64,128")
    assert main(["transfer", "run", "--target", "model.width=256", "--target", "model.depth=8"]) == 2
    assert "mup has no rule for depth (m_L = 4)" in capsys.readouterr().err


def test_a_tiny_sweep_over_depth_trains_its_base_once(capsys: pytest.CaptureFixture[str]) -> None:
    deep = ["model.width=32", "model.depth=2,4", "parameterization=mup,completep", "run_dir=run"]
    lrs = "optimizer.lr=2**-8,2**-6,2**-4"
    assert main(["sweep", *deep, lrs, *TINY]) == 0
    records = read_json(Path("run/sweep.json"))["records"]
    trained = {(r["key"], r["config"]["model"]["depth"]): r["val_loss"] for r in records}
    at = {depth: [loss for (_, d), loss in trained.items() if d == depth] for depth in (2, 4)}
    assert len(at[2]) == 3
    assert len(at[4]) == len(set(at[4])) == 6
    capsys.readouterr()
    assert main(["transfer", "run", "--target", "model.depth=8", "subject=completep"]) in (1, 3)
    assert "over depth" in capsys.readouterr().out.splitlines()[0]
