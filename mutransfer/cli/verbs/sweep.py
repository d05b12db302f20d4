"""`mutransfer sweep`: expands the grid, runs what is not finished yet, and says what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mutransfer.cli.arguments import Arguments
from mutransfer.cli.command import shell_path
from mutransfer.cli.dispatch import DONE, FAIL, UNDECIDED
from mutransfer.cli.loggers import Logger, log_record, make_logger
from mutransfer.cli.output import counted, print_config, writable
from mutransfer.cli.progress import SweepProgress
from mutransfer.cli.standing import all_diverged, all_diverged_advice
from mutransfer.cli.summary import best_table, title, varying
from mutransfer.errors import RunError
from mutransfer.records import TrialRecord, write_json
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.engine import LocalEngine
from mutransfer.sweep.key import Point, sweep_id
from mutransfer.sweep.points import Sweep, expand
from mutransfer.sweep.store import FILE_NAME, Counts, Store

MOST_FAILURES = 5


def run(composer: Composer, arguments: Arguments) -> int:
    """Returns 0 where trials are done, 1 where some have failed, 3 where every one diverged: nothing can be told.

    Where sweep.json cannot be written it is 2, and the store holds what it would say.
    """
    sweep = expand(composer, arguments.overrides)
    if arguments.show_config:
        return print_config(sweep.configs)
    run_dir, engine = Path(sweep.settings["run_dir"]), _engine(sweep.settings["engine"])
    with writable(run_dir):
        logger = make_logger(sweep.settings["logger"])
        records, everything = _run(sweep, engine, run_dir, logger)
    code = _report(records, everything, run_dir)
    if advice := logger.advice():
        print(advice)
    _write(run_dir, everything)
    return code


def _engine(settings: Mapping[str, Any]) -> LocalEngine:
    return LocalEngine(**{name: value for name, value in settings.items() if name != "name"})


def _run(
    sweep: Sweep, engine: LocalEngine, run_dir: Path, logger: Logger
) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """This sweep's records, and all that the run directory holds now."""
    from mutransfer.sweep.preflight import fingerprint, gpus, preflight  # imports torch

    preflight(sweep.configs)
    engine = dataclasses.replace(engine, gpus=gpus(sweep.settings["device"]))
    points = sweep.points(fingerprint)
    with Store.create(run_dir) as store:
        for config in sweep.configs:
            store.pin_data(config["data"], fingerprint(config))
        return _train(engine, points, store, logger), store.records()


def _write(run_dir: Path, everything: Sequence[TrialRecord]) -> None:
    try:
        write_json(run_dir / "sweep.json", {"records": [record.to_json() for record in everything]})
    except RunError as error:
        raise RunError(
            f"{error} The trials are finished and kept in {run_dir / FILE_NAME}: the same command writes the rest."
        ) from None


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


def _report(records: Sequence[TrialRecord], everything: Sequence[TrialRecord], run_dir: Path) -> int:
    console = Console()
    console.print(best_table(records))
    failed = {record.key: record for record in records if record.status == "failed"}
    code, next_step = _next(records, everything, len(failed), run_dir)
    for line in (*_scope(records, run_dir, _trials(everything)), *_failures(records, failed), next_step):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return code


def _scope(records: Sequence[TrialRecord], run_dir: Path, held: int) -> Iterator[str]:
    own = _trials(records)
    if own < held:
        trials = f"This command's {counted(own, 'trial')}; {run_dir} holds {held}"
        yield f"{trials}, and `mutransfer transfer` reads them all."


def _failures(records: Sequence[TrialRecord], failed: Mapping[str, TrialRecord]) -> Iterator[str]:
    several = varying(records)
    for record in list(failed.values())[:MOST_FAILURES]:
        yield f"failed: {title(record, several)}: {record.error}"


def _next(
    records: Sequence[TrialRecord], everything: Sequence[TrialRecord], failed: int, run_dir: Path
) -> tuple[int, str]:
    """The exit code, and what helps now."""
    if failed:
        return FAIL, f"{counted(failed, 'trial')} failed. Add engine.retry_failed=true to try again."
    analyze = f"Next: mutransfer transfer {shell_path(run_dir)}"
    if all_diverged(records):
        return UNDECIDED, f"Every trial diverged. {all_diverged_advice(everything) or analyze}"
    return DONE, analyze
