"""What a person sees while trials run: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

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
        self._say(f"{counts.total} trials{known}.")

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
    loss = f"val loss {record.val_loss:.4f}" if record.val_loss is not None else record.status
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


def best_table(records: Sequence[TrialRecord]) -> Table:
    """Per parameterization and width: the learning rate with the lowest mean held-out loss, and that loss."""
    table = Table(box=None, pad_edge=False)
    for title in ("parameterization", "width", "best lr", "val loss", "trials"):
        table.add_column(title, justify="left" if title == "parameterization" else "right")
    for (name, width), settings in sorted(_by_setting(records).items()):
        best = min(settings.values(), key=_mean_loss)
        trials = sum(len(of_setting) for of_setting in settings.values())
        lr, loss = power(best[0].config["optimizer"]["lr"]), f"{_mean_loss(best):.4f}"
        table.add_row(name, str(width), lr, loss, str(trials))
    return table


def _by_setting(records: Sequence[TrialRecord]) -> dict[tuple[str, int], dict[str, list[TrialRecord]]]:
    """Per parameterization and width, the finished trials that differ in nothing but their seed."""
    rows: dict[tuple[str, int], dict[str, list[TrialRecord]]] = {}
    for record in records:
        if record.val_loss is not None:
            row = (record.config["parameterization"]["name"], record.config["model"]["width"])
            setting = json.dumps({**record.config, "seed": None}, sort_keys=True)
            rows.setdefault(row, {}).setdefault(setting, []).append(record)
    return rows


def _mean_loss(records: Sequence[TrialRecord]) -> float:
    return sum(record.val_loss or 0.0 for record in records) / len(records)
