"""Records as the store's rows hold them: read back, and written for trials that could not write their own."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from mutransfer.errors import RunError
from mutransfer.records import Status, TrialRecord
from mutransfer.sweep.key import TRIAL_SECTIONS

MAX_ATTEMPTS = 3
STATUSES = ("pending", "running", *get_args(Status))


def decode(path: Path, key: str, record: str, config: str | None = None) -> TrialRecord:
    """The record in a row, with another config where one is given.

    Raises:
        RunError: the row is half-written or damaged.
    """
    try:
        found = TrialRecord.from_json(json.loads(record))
    except (TypeError, ValueError):
        raise RunError(
            f"The record of trial {key[:12]} in {path} is damaged. Run its sweep again: that one trial is trained anew."
        ) from None
    return found if config is None else replace(found, config=decode_config(path, key, config))


def decode_config(path: Path, key: str, text: str) -> dict[str, Any]:
    """The resolved config in a row.

    Raises:
        RunError: it is half-written or damaged.
    """
    try:
        config = json.loads(text)
    except (TypeError, ValueError):
        config = None
    if not isinstance(config, dict) or not config.keys() >= set(TRIAL_SECTIONS):
        raise RunError(
            f"The config of trial {key[:12]} in {path} is damaged. Run its sweep again: it is written anew, and "
            "the trial's result is kept."
        )
    return config


def check_statuses(path: Path, statuses: Iterable[str]) -> None:
    """Raises RunError where one of them does not exist."""
    unknown = [status for status in statuses if status not in STATUSES]
    if unknown:
        raise RunError(
            f"A trial in {path} has the status {unknown[0]!r}, which does not exist. "
            "Run its sweep again: that one trial is trained anew."
        )


def is_result(status: str, text: str | None) -> bool:
    """Whether a row holds the readable record of a trial that came to this status."""
    try:
        return TrialRecord.from_json(json.loads(text or "")).status == status
    except ValueError:
        return False


def record_crash(db: sqlite3.Connection, key: str, config: dict[str, Any], crashes: int) -> None:
    """Puts a trial whose worker has died back into the queue, or fails it where that has happened too often."""
    if crashes < MAX_ATTEMPTS:
        db.execute("UPDATE run SET status = 'pending', worker = NULL, crashes = ? WHERE key = ?", (crashes, key))
        return
    fail(db, key, config, f"The worker process died in this trial {crashes} times (killed, or out of memory).")


def fail(db: sqlite3.Connection, key: str, config: dict[str, Any], error: str) -> None:
    """Ends a trial as failed, with a record that says why."""
    record = TrialRecord(key=key, config=config, status="failed", error=error)
    db.execute(
        "UPDATE run SET status = 'failed', record = ?, error = ?, finished = ?, lease = NULL WHERE key = ?",
        (json.dumps(record.to_json()), error, time.time(), key),
    )
