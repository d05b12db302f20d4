"""Long measurements in small units: each is durable at once, none is repeated, and all stop before a budget ends."""

from __future__ import annotations

import dataclasses
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from mutransfer.errors import ConfigError
from mutransfer.records import jsonable, read_json, write_json

Status = Literal["done", "left", "failed"]
SLOWER = 1.5
"""A unit is only begun where this many times the one before it, of its kind, still fits."""
FORMAT = 1


@dataclass(frozen=True)
class Unit:
    """The smallest piece of work that is kept.

    Attributes:
        name: unique in its part.
        run: gives the result, as JSON values.
        kind: units of one kind take about equally long.
        guess: seconds that the first of its kind may take in a process, compilation included.
    """

    name: str
    run: Callable[[], Any]
    kind: str
    guess: float


@dataclass(frozen=True)
class Part:
    """A measurement of several units.

    Attributes:
        name: also of its JSON file.
        settings: what the units' results are a function of, as JSON values.
        units: in the order of their worth.
        summarize: unit name -> result of those that are done -> JSON values.
        show: a summary as text.
    """

    name: str
    settings: Mapping[str, Any]
    units: Sequence[Unit]
    summarize: Callable[[Mapping[str, Any]], Any]
    show: Callable[[Any], str]


def as_json(settings: Any) -> dict[str, Any]:
    """A settings dataclass as a part's `settings`: all but the guess, which changes no result."""
    values: dict[str, Any] = jsonable(dataclasses.asdict(settings))
    values.pop("guess")
    return values


class BudgetError(BaseException):
    """The time is up in the middle of a unit. No Exception: what a unit catches is not to swallow it."""


class Budget:
    """Seconds that may be spent, counted from `started` (of time.monotonic)."""

    def __init__(self, seconds: float, started: float | None = None) -> None:
        begin = time.monotonic() if started is None else started
        self._end = begin + seconds - min(10.0, 0.05 * seconds)  # to write and leave in time

    def left(self) -> float:
        return self._end - time.monotonic()

    @contextmanager
    def alarm(self) -> Iterator[None]:
        """Interrupts what runs inside when the time is up."""

        def ring(number: int, frame: FrameType | None) -> None:
            raise BudgetError

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(self.left(), 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@dataclass
class Ledger:
    """A part's JSON file: its units' results, written after each of them."""

    path: Path
    part: Part
    environment: Mapping[str, Any]
    units: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, part: Part, environment: Mapping[str, Any]) -> Ledger:
        """The file as it stands, or a new one.

        Raises:
            ConfigError: the file was made with other settings.
        """
        ledger = cls(folder / f"{part.name}.json", part, environment)
        if ledger.path.exists():
            written = read_json(ledger.path)
            if not isinstance(written, dict) or written.get("settings") != part.settings:
                raise ConfigError(f"{ledger.path} was made with other settings. Give another --out, or remove it.")
            ledger.units = dict(written["units"])
        return ledger

    def left(self) -> list[Unit]:
        """Units without a result; a unit that failed counts as one."""
        return [unit for unit in self.part.units if "result" not in self.units.get(unit.name, {})]

    def results(self) -> dict[str, Any]:
        return {name: unit["result"] for name, unit in self.units.items() if "result" in unit}

    def add(self, unit: Unit, outcome: Mapping[str, Any], seconds: float) -> None:
        device = self.environment["device"]
        self.units[unit.name] = {"device": device, "seconds": round(seconds, 3), **jsonable(outcome)}
        self.write()

    def write(self, summary: Any = None) -> None:
        content = {
            "format": FORMAT,
            "part": self.part.name,
            "environment": self.environment,
            "settings": self.part.settings,
            "left": [unit.name for unit in self.left()],
            "summary": summary,
            "units": self.units,
        }
        write_json(self.path, content)


def run_part(part: Part, folder: Path, environment: Mapping[str, Any], budget: Budget) -> Status:
    """Runs what is left of a part for as long as the budget lasts, and says what came of it."""
    ledger = Ledger.open(folder, part, environment)
    ledger.write()
    unfinished = ledger.left()
    print(f"{part.name}: {len(part.units) - len(unfinished)} of {len(part.units)} were done before", flush=True)
    latest: dict[str, float] = {}  # the first of a kind compiles, in every process anew
    for unit in unfinished:
        needed = SLOWER * latest[unit.kind] if unit.kind in latest else unit.guess
        spent = _run(unit, ledger, budget) if needed <= budget.left() else None
        if spent is None:
            break
        latest[unit.kind] = spent
    return _conclude(ledger)


def _run(unit: Unit, ledger: Ledger, budget: Budget) -> float | None:
    """Seconds spent; None where the budget ended. A unit that raises is noted, and tried again by the next call."""
    started = time.monotonic()
    try:
        with budget.alarm():
            outcome = {"result": unit.run()}
    except BudgetError:
        return None
    except Exception as error:  # one unit that runs out of memory must not cost the others
        traceback.print_exc()
        outcome = {"error": f"{type(error).__name__}: {error}"}
    seconds = time.monotonic() - started
    ledger.add(unit, outcome, seconds)
    print(f"  {unit.name}: {'failed' if 'error' in outcome else 'done'} in {seconds:.1f} s", flush=True)
    return seconds


def _conclude(ledger: Ledger) -> Status:
    part, left = ledger.part, ledger.left()
    summary = part.summarize(ledger.results()) if ledger.results() else None
    ledger.write(summary)
    if summary is not None:
        print(part.show(summary), flush=True)
    failed = [name for name, unit in ledger.units.items() if "error" in unit]
    if failed:
        print(f"{part.name}: failed: {', '.join(failed)}; see {ledger.path}", flush=True)
    if left:
        names = ", ".join(unit.name for unit in left[:4]) + (", ..." if len(left) > 4 else "")
        print(f"{part.name}: {len(left)} of {len(part.units)} left: {names}. Run the same command again.", flush=True)
    return "failed" if failed else "left" if left else "done"
