"""What the trials behind a report ran on."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from mutransfer import __version__
from mutransfer.records import TrialRecord


def environment_of(records: Iterable[TrialRecord | Mapping[str, Any]] = ()) -> dict[str, str]:
    """The trials' own environments, seeds, number and cost; this machine's versions where there are none."""
    trials = [r if isinstance(r, TrialRecord) else TrialRecord.from_json(r) for r in records]
    if not trials:
        return _here()
    trials = list({trial.key: trial for trial in trials}.values())
    names = dict.fromkeys(name for trial in trials for name in trial.environment)
    found = {name: _values(trial.environment.get(name) for trial in trials) for name in names}
    seeds = _values(trial.config.get("seed") for trial in trials)
    count = {status: sum(trial.status == status for trial in trials) for status in ("done", "diverged", "failed")}
    cost = f"{sum(trial.cpu_seconds for trial in trials):.0f} CPU-seconds"
    told = ", ".join(f"{number} {status}" for status, number in count.items() if number)
    return {"mutransfer": __version__, **found, "seeds": seeds, "trials": f"{told}; {cost}"}


def _values(values: Iterable[Any]) -> str:
    return ", ".join(sorted({str(value) for value in values if value is not None}))


def _here() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("torch", "numpy")}
    return {"mutransfer": __version__, **versions, "python": platform.python_version(), "platform": platform.platform()}
