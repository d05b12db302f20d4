"""`mutransfer train`: one run, such as the target; checkpoints into run_dir and goes on from there."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mutransfer.cli.arguments import Arguments
from mutransfer.cli.dispatch import DONE, FAIL
from mutransfer.cli.loggers import Logger, make_logger
from mutransfer.cli.output import print_config, writable
from mutransfer.cli.progress import progress_bar
from mutransfer.cli.summary import describe
from mutransfer.errors import ConfigError, RunError
from mutransfer.records import TrialRecord, archive_damage, read_json, write_json
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.key import physics
from mutransfer.sweep.validate import validate

CHECKPOINT = "checkpoint.pt"


def run(composer: Composer, arguments: Arguments) -> int:
    """Returns 0 where training finished, 1 where it diverged; 2 where it did before and its model is lost."""
    config = validate("train", composer.config(arguments.overrides))
    if arguments.show_config:
        return print_config(config)
    run_dir, trial = Path(config["run_dir"]), {**physics(config), "device": config["device"]}
    resume = config["resume"] == "auto"
    if resume and (finished := _finished(run_dir, trial)):
        _require_model(run_dir / CHECKPOINT, finished)
        print(f"Finished before: {describe(finished)}. Give resume=never to train it again.")
        return _code(finished)
    with writable(run_dir):
        logger = make_logger(config["logger"])
        record = _train(trial, run_dir, resume, logger)
    path = write_json(run_dir / "train.json", record.to_json())
    print(describe(record))
    print(f"Written: {path}")
    if advice := logger.advice():
        print(advice)
    if record.error:
        raise RunError(f"The run has finished, but its model is not saved. {record.error}")
    return _code(record)


def _finished(run_dir: Path, trial: Mapping[str, Any]) -> TrialRecord | None:
    """The record of this very run, if it is there.

    Raises:
        ConfigError: the directory holds the record of another run, which is not to be overwritten by accident.
    """
    file = run_dir / "train.json"
    if not file.is_file():
        return None
    try:
        record = TrialRecord.from_json(read_json(file))
    except RunError:
        if not (run_dir / CHECKPOINT).is_file():
            raise RunError(
                f"{file} is damaged or half-written. Delete it, or give resume=never to start over."
            ) from None
        return None  # the checkpoint knows the run, and the record is written again
    if record.error:
        return None
    changed = [name for name, value in physics(trial).items() if record.config.get(name) != value]
    if changed:
        raise ConfigError(
            f"{run_dir} holds a run of another config (it differs in {', '.join(changed)}). "
            "Choose another run_dir, or give resume=never to start over there."
        )
    return record


def _require_model(checkpoint: Path, finished: TrialRecord) -> None:
    """Raises RunError where a finished run has no whole checkpoint beside its record; a diverged one needs none."""
    if finished.status == "done" and (damage := archive_damage(checkpoint)):
        raise RunError(
            f"This run has finished before ({describe(finished)}), and its model is lost: {checkpoint} {damage}. "
            "Put a copy of it back, or give resume=never to train it again."
        )


def _train(trial: Mapping[str, Any], run_dir: Path, resume: bool, logger: Logger) -> TrialRecord:
    from mutransfer.sweep.trial import run_trial

    with progress_bar() as bar:
        task = bar.add_task("training", total=trial["train"]["steps"])

        @functools.cache
        def start() -> None:
            """Once, before the first step: a training that is refused leaves no run behind."""
            logger.start(run_dir.name, trial)

        def progress(done: int, _: int) -> None:
            start()
            bar.update(task, completed=done)

        def metrics(step: int, values: Mapping[str, float]) -> None:
            logger.log(values, step)
            losses = [f"{name} {value:.4f}" for name, value in values.items() if name.endswith("loss")]
            bar.update(task, description=", ".join(losses) or "training")

        record = run_trial(
            trial,
            metrics,
            progress=progress,
            checkpoint=run_dir / CHECKPOINT,
            resume=resume,
        )
    logger.finish({"status": record.status, "train_loss": record.train_loss, "val_loss": record.val_loss})
    return record


def _code(record: TrialRecord) -> int:
    return DONE if record.status == "done" else FAIL
