"""What a person sees while trials run: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mutransfer.cli.output import counted
from mutransfer.records import TrialRecord
from mutransfer.sweep.store import Counts

REDRAW_SECONDS = 0.5


class SweepProgress:
    """Follows a sweep: counts, time left, and the best learning rate so far per parameterization and width.

    Args:
        records: gives back all records of the sweep so far.
        console: rich's; a live display where it is a terminal.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        records: Callable[[], Sequence[TrialRecord]],
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records, self._console, self._clock = records, console, clock
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._task = self._bar.add_task("trials")
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._start: tuple[float, float] | None = None
        self._table, self._drawn = best_table(()), -math.inf

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, counts: Counts, new: Sequence[TrialRecord]) -> None:
        if self._start is None:
            self._start = (self._clock(), counts.share)
            self._announce(counts)
        if self._live is not None:
            self._update(counts, bool(new))
            return
        for number, record in enumerate(new, counts.finished - len(new) + 1):
            self._say(f"[{number}/{counts.total}] {describe(record)}")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _announce(self, counts: Counts) -> None:
        known = f", {counts.finished} of them finished before" if counts.finished else ""
        self._say(f"{counted(counts.total, 'trial')}{known}.")

    def _update(self, counts: Counts, changed: bool) -> None:
        """Redraws when a trial has finished, and else twice a second: drawing takes time from the trials."""
        assert self._live is not None
        if not changed and self._clock() - self._drawn < REDRAW_SECONDS:
            return
        if changed:
            self._table = best_table(self._records())
        failed = f", {counts.failed} failed" if counts.failed else ""
        diverged = f", {counts.diverged} diverged" if counts.diverged else ""
        text = f"{counts.running} running{diverged}{failed}, {self._time_left(counts.share)}"
        self._bar.update(self._task, description=text, total=counts.total, completed=counts.finished)
        self._live.update(Group(self._bar, self._table), refresh=True)
        self._drawn = self._clock()

    def _time_left(self, share: float) -> str:
        assert self._start is not None
        begun, before = self._start
        if share <= before:
            return "time left unknown"
        minutes, seconds = divmod(round((self._clock() - begun) * (1 - share) / (share - before)), 60)
        return f"about {minutes}:{seconds:02d} left"


def progress_bar() -> Progress:
    """One bar on stderr, and nothing where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())


def describe(record: TrialRecord) -> str:
    """One finished trial in one line."""
    config = record.config
    what = f"{config['parameterization']['name']} width {config['model']['width']}, {power(config['optimizer']['lr'])}"
    loss = f"val loss {loss_text(record.val_loss)}" if record.val_loss is not None else record.status
    why = f": {record.error}" if record.error else ""
    own = "".join(f", {key}={value:g}" for key, value in _own(config["hp"], "hp") if value != 1)
    return f"{what}{own}, seed {config['seed']}: {loss}{why} ({record.seconds:.1f} s)"


def _own(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """muP's own hyperparameters under their config keys."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _own(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def power(lr: float) -> str:
    """A learning rate as people of this field read it: `lr 2^-6`, `lr 2^-6.5`."""
    exponent = round(math.log2(lr), 2)
    return f"lr 2^{exponent:g}"


def loss_text(loss: float) -> str:
    """Nats to four decimals; a loss that is beyond all measure in four digits."""
    return f"{loss:.4f}" if abs(loss) < 1e3 else f"{loss:.4g}"


def best_table(records: Sequence[TrialRecord]) -> Table:
    """Per parameterization and width: the setting with the lowest mean held-out loss over the seeds that survived it.

    Of muP's own hyperparameters those are named that take several values in these records.
    """
    table = Table(box=None, pad_edge=False)
    for title in ("parameterization", "width", "best", "val loss", "seeds", "trials"):
        table.add_column(title, justify="left" if title == "parameterization" else "right")
    varying = _varying(records)
    for (name, width), settings in sorted(_by_setting(records).items()):
        best = min((alike for alike in settings if _survivors(alike)), key=_mean_loss, default=None)
        if best is None:
            continue
        config = best[0].config
        own = "".join(f", {key}={value:g}" for key, value in _own(config["hp"], "hp") if key in varying)
        seeds = f"{len(_survivors(best))} of {len(best)}"
        trials = sum(len(of_setting) for of_setting in settings)
        row = (name, str(width), power(config["optimizer"]["lr"]) + own, loss_text(_mean_loss(best)), seeds)
        table.add_row(*map(escape, row), str(trials))
    return table


def _varying(records: Sequence[TrialRecord]) -> set[str]:
    values: dict[str, set[float]] = {}
    for record in records:
        for key, value in _own(record.config["hp"], "hp"):
            values.setdefault(key, set()).add(value)
    return {key for key, seen in values.items() if len(seen) > 1}


def _by_setting(records: Sequence[TrialRecord]) -> dict[tuple[str, int], list[list[TrialRecord]]]:
    """Per parameterization and width, the finished trials that differ in nothing but their seed."""
    rows: dict[tuple[str, int], dict[str, list[TrialRecord]]] = {}
    for record in records:
        if record.status != "failed":
            row = (record.config["parameterization"]["name"], record.config["model"]["width"])
            setting = json.dumps({**record.config, "seed": None}, sort_keys=True)
            rows.setdefault(row, {}).setdefault(setting, []).append(record)
    return {row: list(settings.values()) for row, settings in rows.items()}


def _survivors(records: Sequence[TrialRecord]) -> list[float]:
    return [record.val_loss for record in records if record.val_loss is not None]


def _mean_loss(records: Sequence[TrialRecord]) -> float:
    return statistics.fmean(_survivors(records))
