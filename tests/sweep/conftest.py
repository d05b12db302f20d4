"""Points and trials that need no model: what the store and the engine do must not depend on what a trial is."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mutransfer.sweep.key import Point

STUB = """
    import os, pathlib, signal, time
    from mutransfer.records import TrialRecord
    from mutransfer.sweep.key import trial_key

    LOG = pathlib.Path(os.environ["STUB_LOG"])

    def factory(threads):
        return trial

    def trial(config, metrics):
        with LOG.open("a") as log:
            log.write(f"{config['seed']} {os.getpid()}\\n")
        metrics(0, {"train_loss": 5.0})
        behave(config["seed"])
        return TrialRecord(
            key=trial_key(config, "corpus"), config=config, status="done", val_loss=config["seed"] / 8,
            steps=1, history=((1, 2.0),),
        )

    def behave(seed):
        once = LOG.with_suffix(f".{seed}")
        first, _ = not once.exists(), once.touch()
        time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
        while os.environ.get("STUB_HANG") == str(seed):
            time.sleep(1)
        if os.environ.get("STUB_RAISE") == str(seed):
            raise RuntimeError("out of luck")
        if os.environ.get("STUB_KILL") == str(seed) or (first and os.environ.get("STUB_KILL_ONCE") == str(seed)):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def config() -> Callable[..., dict[str, Any]]:
    """A resolved trial config; dotted names change it: `config(**{"model.width": 64})`."""

    def make(**changes: Any) -> dict[str, Any]:
        hp = {"output_mult": 1.0, "init_std": {"input": 1.0}, "lr": {"input": 1.0}}
        result: dict[str, Any] = {
            "model": {"name": "gpt", "width": 32, "depth": 2, "base_depth": 2},
            "base": 32,
            "base_depth": 2,
            "parameterization": {"name": "mup", "form": "auto", "init": "rescale", "scale": "heads"},
            "hp": hp,
            "optimizer": {"name": "adamw", "lr": 0.0625},
            "data": {"name": "stdlib", "batch_size": 8, "seq_len": 64},
            "train": {"steps": 10, "accumulate": 1},
            "precision": {"name": "fp32"},
            "device": "cpu",
            "seed": 0,
        }
        for key, value in changes.items():
            *parents, leaf = key.split(".")
            node = result
            for parent in parents:
                node = node[parent]
            node[leaf] = value
        return result

    return make


@pytest.fixture
def points(config: Callable[..., dict[str, Any]]) -> Callable[[int], list[Point]]:
    """So many points that differ in their seed."""
    return lambda count: [Point.of(config(seed=seed), "corpus") for seed in range(count)]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Puts a trial function without torch where workers find it; gives back which seeds have been started, in order."""
    (tmp_path / "stub_trial.py").write_text(textwrap.dedent(STUB))
    log = tmp_path / "started.log"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("STUB_LOG", str(log))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return lambda: [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []
