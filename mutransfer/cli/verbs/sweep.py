"""`mutransfer sweep`: expands the grid, runs what is not finished yet, and says what came out."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mutransfer.cli.arguments import Arguments
from mutransfer.cli.dispatch import DONE, FAIL
from mutransfer.cli.loggers import Logger, log_record, make_logger
from mutransfer.cli.output import counted, print_config, writable
from mutransfer.cli.progress import SweepProgress
from mutransfer.cli.summary import best_table, title, varying
from mutransfer.records import TrialRecord, write_json
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.engine import LocalEngine
from mutransfer.sweep.key import Point, sweep_id
from mutransfer.sweep.points import Sweep, expand
from mutransfer.sweep.store import Counts, Store
from mutransfer.transfer.grid import exact

MOST_FAILURES = 5
SMALLER = (64, 16, 4)
"""By what to divide the smallest learning rate where all of them diverged."""


def run(composer: Composer, arguments: Arguments) -> int:
    """Returns 0 where every trial is done or diverged, 1 where some have failed."""
    sweep = expand(composer, arguments.overrides)
    if arguments.show_config:
        return print_config(sweep.configs)
    run_dir, engine = Path(sweep.settings["run_dir"]), _engine(sweep.settings["engine"])
    with writable(run_dir):
        logger = make_logger(sweep.settings["logger"])
        records, held = _run(sweep, engine, run_dir, logger)
    code = _report(records, run_dir, held)
    if advice := logger.advice():
        print(advice)
    return code


def _engine(settings: Mapping[str, Any]) -> LocalEngine:
    return LocalEngine(**{name: value for name, value in settings.items() if name != "name"})


def _run(sweep: Sweep, engine: LocalEngine, run_dir: Path, logger: Logger) -> tuple[list[TrialRecord], int]:
    """This sweep's records, and how many trials the run directory holds now."""
    from mutransfer.sweep.preflight import fingerprint, gpus, preflight  # imports torch

    preflight(sweep.configs)
    engine = dataclasses.replace(engine, gpus=gpus(sweep.settings["device"]))
    points = sweep.points(fingerprint)
    with Store.create(run_dir) as store:
        for config in sweep.configs:
            store.pin_data(config["data"], fingerprint(config))
        records = _train(engine, points, store, logger)
        everything = store.records()
    write_json(run_dir / "sweep.json", {"records": [record.to_json() for record in everything]})
    return records, _trials(everything)


def _trials(records: Sequence[TrialRecord]) -> int:
    """At the base size a trial may answer for several parameterizations, and is one trial still."""
    return len({record.key for record in records})


def _train(engine: LocalEngine, points: Sequence[Point], store: Store, logger: Logger) -> list[TrialRecord]:
    sweep = sweep_id(points)
    with SweepProgress(lambda: store.records(sweep), Console()) as progress:

        def watch(counts: Counts, new: Sequence[TrialRecord]) -> None:
            progress(counts, new)
            for record in new:
                log_record(logger, record)

        return engine.run(points, store, watch)


def _report(records: Sequence[TrialRecord], run_dir: Path, held: int) -> int:
    console = Console()
    console.print(best_table(records))
    failed = {record.key: record for record in records if record.status == "failed"}
    for line in (*_scope(records, run_dir, held), *_failures(records, failed), _next(records, len(failed), run_dir)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return FAIL if failed else DONE


def _scope(records: Sequence[TrialRecord], run_dir: Path, held: int) -> Iterator[str]:
    own = _trials(records)
    if own < held:
        trials = f"This command's {counted(own, 'trial')}; {run_dir} holds {held}"
        yield f"{trials}, and `mutransfer transfer` reads them all."


def _failures(records: Sequence[TrialRecord], failed: Mapping[str, TrialRecord]) -> Iterator[str]:
    several = varying(records)
    for record in list(failed.values())[:MOST_FAILURES]:
        yield f"failed: {title(record, several)}: {record.error}"


def _next(records: Sequence[TrialRecord], failed: int, run_dir: Path) -> str:
    """What helps now."""
    if failed:
        return f"{counted(failed, 'trial')} failed. Add engine.retry_failed=true to try again."
    if records and all(record.val_loss is None for record in records):
        lowest = min(record.config["optimizer"]["lr"] for record in records)
        smaller = ",".join(exact(lowest / factor) for factor in SMALLER)
        return f"Every trial diverged. Next: the same command with smaller learning rates, optimizer.lr={smaller}"
    return f"Next: mutransfer transfer {shlex.quote(str(run_dir))}"
