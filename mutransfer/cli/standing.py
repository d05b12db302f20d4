"""What keeps a sweep from saying anything yet: trials that have not run, or learning rates that all diverge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mutransfer.cli.output import counted
from mutransfer.errors import MutransferError
from mutransfer.records import TrialRecord
from mutransfer.transfer import TransferReport, analyze_records

_FEWEST_DRAWS = 100


def all_diverged(records: Sequence[TrialRecord]) -> bool:
    return bool(records) and all(record.status == "diverged" for record in records)


def all_diverged_advice(records: Sequence[TrialRecord]) -> str:
    """What `mutransfer transfer` says of these records; empty where they are enough for a verdict."""
    try:
        analyze_records(records, draws=_FEWEST_DRAWS)
    except MutransferError as error:
        return str(error)
    return ""


class TooEarlyError(Exception):
    """The sweep is right and what it has so far cannot be judged; the message says why."""


def analyze(records: Sequence[TrialRecord], unfinished: Sequence[Mapping[str, Any]], **asked: Any) -> TransferReport:
    """`analyze_records`, where too little has run or has converged told apart from what was asked wrongly.

    Raises:
        TooEarlyError: as the sweep stands.
        MutransferError: what stays wrong when every trial has run.
    """
    try:
        return analyze_records(records, **asked, unfinished=unfinished)
    except MutransferError as error:
        if unfinished:
            _analyze_as_if_run(records, unfinished, asked)
            trials = counted(len(unfinished), "trial")
            have = "has" if len(unfinished) == 1 else "have"
            known = len({record.key for record in records}) + len(unfinished)
            raise TooEarlyError(f"{trials} of {known} {have} not run") from None
        if all_diverged(records):
            raise TooEarlyError(str(error)) from None
        raise


def _analyze_as_if_run(
    records: Sequence[TrialRecord], unfinished: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]
) -> None:
    """Raises what the analysis would still say if every trial had come to a loss, whatever that is."""
    planted = [
        TrialRecord(key=f"unfinished {k}", config=config, status="done", val_loss=1.0 + k / len(unfinished))
        for k, config in enumerate(unfinished)
    ]
    analyze_records([*records, *planted], **asked, draws=_FEWEST_DRAWS)
