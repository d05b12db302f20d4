"""What a person sees while trials run: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mutransfer.cli.output import counted
from mutransfer.cli.summary import best_table, describe
from mutransfer.records import TrialRecord
from mutransfer.sweep.store import Counts

REDRAW_SECONDS = 0.5


class SweepProgress:
    """Follows a sweep: counts, time left, and the best learning rate so far per parameterization and size.

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
