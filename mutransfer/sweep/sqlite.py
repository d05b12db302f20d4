"""SQLite as the store uses it, with every error it can raise put into a sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mutransfer.errors import RunError
from mutransfer.records import probe

TIMEOUT = 60
"""Seconds to wait for a lock."""
_STOPS = {
    errno.ENOSPC: ("No space is left on the device that holds", "Free some space"),
    errno.EDQUOT: ("Your quota is used up on the device that holds", "Free some of it"),
    errno.EFBIG: (
        "No larger file is allowed than the results that have been written to",
        "Allow larger ones (`ulimit -f unlimited`, where the shell limits them)",
    ),
}
"""Why a file cannot grow, and what helps."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection that commits by itself; in the store's WAL mode many readers beside one writer."""
    with readable_errors(path):
        connection = sqlite3.connect(path, timeout=TIMEOUT, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection


def connect_read_only(path: Path) -> sqlite3.Connection:
    """A connection that only reads, also from a disk that is full or read-only.

    Reading in WAL mode writes an index beside the file. Where that is impossible the file is read as one that nobody
    changes, which is all of it only as long as no log of later writes lies beside it.

    Raises:
        RunError: a file that cannot be read, or a log that cannot be read with it.
    """
    with readable_errors(path):
        connection = _open(path, "mode=ro")
        try:
            connection.execute("SELECT COUNT(*) FROM sqlite_master")
        except sqlite3.OperationalError:
            connection.close()
            _refuse_log(path)
            connection = _open(path, "mode=ro&immutable=1")
        return connection


def _open(path: Path, options: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True, timeout=TIMEOUT, isolation_level=None)


def _refuse_log(path: Path) -> None:
    log = path.with_name(f"{path.name}-wal")
    if log.is_file() and log.stat().st_size:
        raise RunError(
            f"The last results are in {log}, which can only be read where there is room to write. "
            f"Copy {path.parent} to another disk and use the copy."
        )


@contextlib.contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into RunError, with what to do about it."""
    try:
        yield
    except sqlite3.Error as error:
        raise RunError(_explain(path, error)) from error


def _explain(path: Path, error: sqlite3.Error) -> str:
    text = str(error)
    if "full" in text:
        return stopped(path.parent, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    if (refused := what_stops(path.parent)) is not None:  # of which SQLite only says "disk I/O error"
        return stopped(path.parent, refused)
    if "readonly" in text or "unable to open" in text:
        return f"No permission to read or write {path}. Choose another run_dir, or change its permissions."
    if "not a database" in text or "malformed" in text:
        return f"{path} is damaged or not a sweep store ({text}). Move it away and run the sweep again."
    if "locked" in text:
        return (
            f"Another process has kept {path} locked for {TIMEOUT} s. Let it end and run the same command again; on a "
            "network disk, choose a run_dir on a local one."
        )
    return (
        f"{path} cannot be used: {text}. Check the disk, which must be a local one, and run the same command again: "
        "finished trials are kept."
    )


def what_stops(folder: Path) -> OSError | None:
    """Why none of the store's files can grow: a full device, a quota, or a limit on their size; None where they can."""
    try:
        probe(folder, max((file.stat().st_size for file in folder.glob("*.sqlite*")), default=0))
    except OSError as error:
        return error if error.errno in _STOPS else None
    return None


def stopped(run_dir: Path, error: OSError) -> str:
    """The sentence for a sweep that has been refused more room."""
    what, help = _STOPS[error.errno or 0]
    return f"{what} {run_dir}. {help} and run the same command again: finished trials are kept."
