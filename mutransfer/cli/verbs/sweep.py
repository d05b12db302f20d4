"""`mutransfer sweep`: expands the grid, runs what is not finished yet, and says what came out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mutransfer.cli.arguments import Arguments
from mutransfer.cli.dispatch import DONE, FAIL
from mutransfer.cli.loggers import Logger, log_record, make_logger
from mutransfer.cli.output import counted, print_config
from mutransfer.cli.progress import SweepProgress
from mutransfer.cli.summary import best_table, title, varying
from mutransfer.records import TrialRecord, write_json
from mutransfer.sweep.compose import Composer
from mutransfer.sweep.engine import LocalEngine
from mutransfer.sweep.key import Point, sweep_id
from mutransfer.sweep.points import expand
from mutransfer.sweep.store import Counts, Store


def run(composer: Composer, arguments: Arguments) -> int:
    """Returns 0 where every trial is done or diverged, 1 where some have failed."""
    sweep = expand(composer, arguments.overrides)
    if arguments.show_config:
        return print_config(sweep.configs)
    from mutransfer.sweep.preflight import fingerprint, gpus, preflight

    preflight(sweep.configs)
    run_dir, logger = Path(sweep.settings["run_dir"]), make_logger(sweep.settings["logger"])
    engine = _engine(sweep.settings["engine"], gpus(sweep.settings["device"]))
    points = sweep.points(fingerprint)
    with Store.create(run_dir) as store:
        for config in sweep.configs:
            store.pin_data(config["data"], fingerprint(config))
        records = _train(engine, points, store, logger)
        write_json(run_dir / "sweep.json", {"records": [record.to_json() for record in store.records()]})
    return _report(records, run_dir)


def _engine(settings: Mapping[str, Any], gpus: tuple[str, ...]) -> LocalEngine:
    return LocalEngine(**{name: value for name, value in settings.items() if name != "name"}, gpus=gpus)


def _train(engine: LocalEngine, points: Sequence[Point], store: Store, logger: Logger) -> list[TrialRecord]:
    sweep = sweep_id(points)
    with SweepProgress(lambda: store.records(sweep), Console()) as progress:

        def watch(counts: Counts, new: Sequence[TrialRecord]) -> None:
            progress(counts, new)
            for record in new:
                log_record(logger, record)

        return engine.run(points, store, watch)


def _report(records: Sequence[TrialRecord], run_dir: Path) -> int:
    console = Console()
    console.print(best_table(records))
    failed = {record.key: record for record in records if record.status == "failed"}
    several = varying(records)
    for record in list(failed.values())[:5]:
        line = f"failed: {title(record, several)}: {record.error}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if failed:
        again = "Add engine.retry_failed=true to try again."
        console.print(f"{counted(len(failed), 'trial')} failed. {again}", highlight=False)
        return FAIL
    console.print(
        f"Next: mutransfer transfer {shlex.quote(str(run_dir))}", markup=False, highlight=False, soft_wrap=True
    )
    return DONE
