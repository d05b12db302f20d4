"""SQLite as the store uses it, with every error it can raise put into a sentence."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mutransfer.errors import RunError


def connect(path: Path) -> sqlite3.Connection:
    """A connection that commits by itself, in WAL mode: many readers beside one writer, safe against kill -9."""
    with readable_errors(path):
        connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection


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
        return (
            f"The disk that holds {path} is full. Free some space and rerun the same command: nothing finished is lost."
        )
    if "readonly" in text or "unable to open" in text:
        return f"No permission to write {path}. Choose another run_dir, or change its permissions."
    if "not a database" in text or "malformed" in text:
        return f"{path} is damaged or not a sweep store ({text}). Move it away and run the sweep again."
    return f"{path} cannot be used: {text}. It must lie on a local disk."
