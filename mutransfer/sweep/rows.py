"""Records as the store's rows hold them: read back, and written for trials that could not write their own."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mutransfer.errors import RunError
from mutransfer.records import TrialRecord

MAX_ATTEMPTS = 3


def decode(path: Path, key: str, record: str, config: str | None = None) -> TrialRecord:
    """The record in a row, with another config where one is given.

    Raises:
        RunError: the row is half-written or damaged.
    """
    try:
        found = TrialRecord.from_json(json.loads(record))
        return found if config is None else replace(found, config=json.loads(config))
    except (TypeError, ValueError):
        raise RunError(
            f"The record of trial {key[:12]} in {path} is damaged. Run its sweep again: that one trial is trained anew."
        ) from None


def is_record(text: str | None) -> bool:
    try:
        TrialRecord.from_json(json.loads(text or ""))
    except ValueError:
        return False
    return True


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
