"""wandb is there when asked for, offline unless told otherwise, and the default run knows nothing of it."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from mutransfer.cli.loggers import NoLogger, WandbLogger, log_record, make_logger
from mutransfer.errors import ConfigError, RunError
from mutransfer.records import TrialRecord
from mutransfer.sweep.compose import Composer

CONFIG = {"parameterization": {"name": "mup"}, "model": {"width": 64}}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_ERROR_REPORTING", "WANDB_SILENT"):
        monkeypatch.setenv(name, "unset")  # so that what the logger sets is undone after the test
        monkeypatch.delenv(name)
    config = Composer("train").config(["logger=wandb", f"run_dir={tmp_path}"])
    return dict(config["logger"])


def test_the_default_logger_does_nothing() -> None:
    assert isinstance(make_logger({"name": "none"}), NoLogger)
    log_record(NoLogger(), TrialRecord(key="k" * 64, config=CONFIG, status="done"))


def test_wandb_offline_writes_a_run_and_asks_nobody(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a look-up in the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(sys, "stdin", None)
    logger = make_logger(settings)
    record = TrialRecord(key="k" * 64, config=CONFIG, status="done", val_loss=2.0, history=((1, 3.0), (2, 2.5)))
    log_record(logger, record)
    (run,) = tmp_path.glob("wandb/offline-run-*")
    assert list(run.glob("run-*.wandb"))
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert logger.advice().endswith(f"To upload: wandb sync {tmp_path / 'wandb'}")


def test_where_nothing_was_logged_offline_there_is_nothing_to_upload(settings: dict[str, Any]) -> None:
    assert NoLogger().advice() == ""
    assert make_logger(settings).advice() == ""
    logger = make_logger({**settings, "mode": "disabled"})
    log_record(logger, TrialRecord(key="k" * 64, config=CONFIG, status="done"))
    assert logger.advice() == ""


def test_wandb_is_offline_unless_told_otherwise(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert WandbLogger(settings)._mode == "offline"
    assert WandbLogger({**settings, "mode": "online"})._mode == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert WandbLogger({**settings, "mode": "online"})._mode == "disabled"
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ConfigError, match="WANDB_MODE=sometimes does not exist"):
        WandbLogger(settings)


def test_the_users_own_error_reporting_is_respected(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    WandbLogger(settings)
    assert os.environ["WANDB_ERROR_REPORTING"] == "true"


def test_wandb_online_without_a_key_is_explained_and_does_not_ask(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    logger = WandbLogger({**settings, "mode": "online"})
    with pytest.raises(RunError, match=r"start: [^.]*\. Run `wandb login`, or use logger\.mode=offline\.$"):
        logger.start("run", CONFIG)


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_trained(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="a file stands where a folder is needed"):
        make_logger({**settings, "dir": str(tmp_path / "file" / "wandb")})
    assert make_logger({**settings, "dir": None})
