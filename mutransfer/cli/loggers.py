"""Where training also reports to, besides the store: nothing by default, or Weights & Biases, offline unless asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mutransfer.cli.command import shell_path
from mutransfer.errors import ConfigError, RunError
from mutransfer.records import TrialRecord, check_writable

WANDB_MODES = ("offline", "online", "disabled")


class Logger(Protocol):
    """Three calls per run, and one at the end. Anything that has them can be a logger."""

    def start(self, name: str, config: Mapping[str, Any]) -> None: ...

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...

    def advice(self) -> str:
        """A line to print when all is done; empty where there is nothing to say."""
        ...


class NoLogger:
    """The default: reports to nobody, imports nothing, and never touches the network."""

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        pass

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def finish(self, summary: Mapping[str, Any]) -> None:
        pass

    def advice(self) -> str:
        return ""


class WandbLogger:
    """Weights & Biases. Offline it needs no account, asks nothing and makes no connection.

    Args:
        settings: the `logger` section of the config. The environment's WANDB_MODE wins over its `mode`.

    Raises:
        ConfigError: a WANDB_MODE that does not exist.
        RunError: its folder cannot be made or written to.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._mode = os.environ.get("WANDB_MODE") or settings["mode"]
        if self._mode not in WANDB_MODES:
            raise ConfigError(f"WANDB_MODE={self._mode} does not exist. Known: {', '.join(WANDB_MODES)}.")
        if settings["dir"] is not None:
            check_writable(settings["dir"])
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        self._run: Any = None

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        settings: Any = self._settings
        mode: Any = self._mode
        try:
            self._run = wandb.init(
                mode=mode,
                name=name,
                config=dict(config),
                project=settings["project"],
                entity=settings["entity"],
                group=settings["group"],
                tags=list(settings["tags"]),
                dir=settings["dir"],
                reinit="finish_previous",
            )
        except wandb.errors.Error as error:
            reason = str(error).partition(". ")[0].rstrip(".")  # what it advises stands in our own words
            raise RunError(f"wandb cannot start: {reason}. Run `wandb login`, or use logger.mode=offline.") from None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update({name: value for name, value in summary.items() if value is not None})
        self._run.finish()

    def advice(self) -> str:
        """Where runs that were logged offline are, and how to upload them."""
        if self._run is None or self._mode != "offline":
            return ""
        folder = Path(self._run.dir).parents[1]  # of all runs; the run's own files lie in FOLDER/offline-run-.../files
        if folder.is_relative_to(Path.cwd()):
            folder = folder.relative_to(Path.cwd())
        return f"Logged offline in {folder}. To upload: wandb sync {shell_path(folder)}"


def make_logger(settings: Mapping[str, Any]) -> Logger:
    """The logger that the config's `logger` section names."""
    return WandbLogger(settings) if settings["name"] == "wandb" else NoLogger()


def log_record(logger: Logger, record: TrialRecord) -> None:
    """Reports a finished trial as one run of the logger."""
    config = record.config
    logger.start(f"{config['parameterization']['name']}-{config['model']['width']}-{record.key[:8]}", config)
    for step, loss in record.history:
        logger.log({"train_loss": loss}, step)
    names = ("status", "train_loss", "val_loss", "steps", "tokens", "seconds", "cpu_seconds", "parameters")
    logger.finish({name: getattr(record, name) for name in names})
