"""SQLite as the store uses it, with every error it can raise put into a sentence."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mutransfer.errors import RunError
from mutransfer.records import PROBE_BYTES


def connect(path: Path) -> sqlite3.Connection:
    """A connection that commits by itself; in the store's WAL mode many readers beside one writer."""
    with readable_errors(path):
        connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
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
    return sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True, timeout=60, isolation_level=None)


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
    if "full" in text or not has_room(path.parent):  # without room for its index, SQLite only says "disk I/O error"
        return no_room(path.parent)
    if "readonly" in text or "unable to open" in text:
        return f"No permission to read or write {path}. Choose another run_dir, or change its permissions."
    if "not a database" in text or "malformed" in text:
        return f"{path} is damaged or not a sweep store ({text}). Move it away and run the sweep again."
    return f"{path} cannot be used: {text}. It must lie on a local disk."


def has_room(folder: Path) -> bool:
    """False only where the device that holds the folder is full, or its user's share of it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return True


def no_room(run_dir: Path) -> str:
    """The sentence for a sweep that a full device has ended."""
    return (
        f"No space is left on the device that holds {run_dir}. "
        "Free some space and run the same command again: finished trials are kept."
    )
