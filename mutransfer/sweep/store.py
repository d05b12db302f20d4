"""The results of a run directory: one SQLite file, facts that are added and never changed, leases that expire.

A *run* is one trial, named by the hash of its config. A *point* is what a sweep asked for; several points, of several
sweeps, may be answered by one run. WAL with `synchronous=NORMAL` loses nothing when a process is killed; it needs a
local disk.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mutransfer.errors import RunError
from mutransfer.records import TrialRecord, cannot_write, jsonable
from mutransfer.sweep.key import Point
from mutransfer.sweep.processes import may_be_alive
from mutransfer.sweep.rows import check_statuses, decode, decode_config, fail, is_result, record_crash
from mutransfer.sweep.sqlite import connect, connect_read_only, readable_errors

FILE_NAME = "sweep.sqlite"
VERSION = 1

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE run (
    key TEXT PRIMARY KEY, config TEXT NOT NULL, cost REAL NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending', worker TEXT, lease REAL, crashes INTEGER NOT NULL DEFAULT 0,
    record TEXT, error TEXT, started REAL, finished REAL
);
CREATE TABLE metric (key TEXT NOT NULL, step INTEGER NOT NULL, name TEXT NOT NULL, value REAL);
CREATE INDEX metric_key ON metric (key);
CREATE TABLE point (
    sweep TEXT NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL, config TEXT NOT NULL, PRIMARY KEY (sweep, id)
);
CREATE INDEX point_key ON point (key);
"""

_OF_SWEEP = "key IN (SELECT key FROM point WHERE sweep = :sweep)"
_AFRESH = "status = 'pending', crashes = 0, record = NULL, error = NULL, finished = NULL"
_CLAIMABLE = f"""
SELECT key, config FROM run WHERE {_OF_SWEEP} AND (status = 'pending' OR (status = 'running' AND lease < :now))
ORDER BY cost DESC, key LIMIT 1
"""


@dataclass(frozen=True)
class Claim:
    """A trial that this worker may run until its lease expires."""

    key: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Counts:
    pending: int = 0
    running: int = 0
    done: int = 0
    diverged: int = 0
    failed: int = 0
    share: float = 0.0
    """The finished part of the sweep's whole cost."""

    @property
    def finished(self) -> int:
        return self.done + self.diverged + self.failed

    @property
    def unfinished(self) -> int:
        return self.pending + self.running

    @property
    def total(self) -> int:
        return self.finished + self.unfinished


class Store:
    """One process's door to `sweep.sqlite`. Every method is one transaction."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def create(cls, run_dir: str | Path) -> Self:
        """Opens the store of a run directory, making both where they are missing.

        Raises:
            RunError: no permission, a full disk, or a file there that is not such a store.
        """
        path = Path(run_dir) / FILE_NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(cannot_write(path.parent, error)) from None
        store = cls(path, connect(path))
        store._make_tables()
        return store

    @classmethod
    def open(cls, run_dir: str | Path) -> Self:
        """Opens the store that a sweep left in this directory.

        Raises:
            RunError: there is none, or it is damaged.
        """
        return cls._opened(run_dir, connect)

    @classmethod
    def read_only(cls, run_dir: str | Path) -> Self:
        """Opens that store to read its results, also on a disk that is full or read-only; writes nothing.

        Raises:
            RunError: there is none, or it is damaged.
        """
        return cls._opened(run_dir, connect_read_only)

    @classmethod
    def _opened(cls, run_dir: str | Path, connect: Callable[[Path], sqlite3.Connection]) -> Self:
        path = Path(run_dir) / FILE_NAME
        if not path.is_file():
            what = "does not exist" if not path.parent.exists() else f"is not a run directory: it has no {FILE_NAME}"
            raise RunError(f"{run_dir} {what}. Give the run_dir of a `mutransfer sweep`.")
        store = cls(path, connect(path))
        store._check_version()
        return store

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, sweep: str, points: Iterable[Point]) -> None:
        """Asks for these points; runs that are known already, in any state, stay as they are.

        Configs are written again, in every sweep that has them: there they may have been damaged.
        """
        points = list(points)
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO run (key, config, cost) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET config = excluded.config WHERE config IS NOT excluded.config",
                [(point.key, json.dumps(point.config), point.cost) for point in points],
            )
            db.executemany(
                "INSERT OR IGNORE INTO point (sweep, id, key, config) VALUES (?, ?, ?, ?)",
                [(sweep, point.id, point.key, json.dumps(point.config)) for point in points],
            )
            db.executemany(
                "UPDATE point SET config = :config WHERE key = :key AND id = :id AND config IS NOT :config",
                [{"id": point.id, "key": point.key, "config": json.dumps(point.config)} for point in points],
            )

    def pin_data(self, data: Mapping[str, Any], sha256: str) -> None:
        """Remembers which corpus this data config means here.

        Raises:
            RunError: the directory holds trials of another corpus under the same data config.
        """
        name = "data:" + json.dumps(jsonable(data), sort_keys=True)
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, sha256))
            (known,) = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if known != sha256:
            raise RunError(
                f"{self.path.parent} holds trials of another corpus (sha256 {known[:12]}, now {sha256[:12]}; the "
                "standard library differs between Python versions), and their losses cannot be compared. "
                "Choose another run_dir."
            )

    def claim(self, sweep: str, worker: str, lease: float) -> Claim | None:
        """The most expensive trial of the sweep that nobody works on, now leased to this worker."""
        now = time.time()
        with self._transaction() as db:
            row = db.execute(_CLAIMABLE, {"sweep": sweep, "now": now}).fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE run SET status = 'running', worker = ?, lease = ?, started = ? WHERE key = ?",
                (worker, now + lease, now, row[0]),
            )
            db.execute("DELETE FROM metric WHERE key = ?", (row[0],))
        return Claim(row[0], decode_config(self.path, *row))

    def renew(self, key: str, worker: str, lease: float) -> bool:
        """Extends a lease; False where the worker has lost it to another."""
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE run SET lease = ? WHERE key = ? AND worker = ? AND status = 'running'",
                (time.time() + lease, key, worker),
            )
            return changed.rowcount == 1

    def log(self, key: str, rows: Sequence[tuple[int, str, float | None]]) -> None:
        with self._transaction() as db:
            db.executemany("INSERT INTO metric VALUES (?, ?, ?, ?)", [(key, *row) for row in rows])

    def finish(self, worker: str, record: TrialRecord) -> bool:
        """Records a result for good; False where the worker has lost its lease, and the result is dropped."""
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE run SET status = ?, record = ?, error = ?, finished = ?, lease = NULL "
                "WHERE key = ? AND worker = ? AND status = 'running'",
                (record.status, json.dumps(record.to_json()), record.error, time.time(), record.key, worker),
            )
            return changed.rowcount == 1

    def release(self, worker: str) -> None:
        """Gives an interrupted worker's trials back; being interrupted is nobody's fault."""
        with self._transaction() as db:
            db.execute(
                "UPDATE run SET status = 'pending', worker = NULL, lease = NULL "
                "WHERE worker = ? AND status = 'running'",
                (worker,),
            )

    def crashed(self, worker: str) -> list[str]:
        """Gives back the trial in which a worker died; after three deaths the trial has failed. The keys concerned."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT key, config, crashes FROM run WHERE worker = ? AND status = 'running'", (worker,)
            ).fetchall()
            for key, config, crashes in rows:
                record_crash(db, key, json.loads(config), crashes + 1)
        return [key for key, _, _ in rows]

    def time_out(self, workers: Sequence[str], timeout: float) -> list[str]:
        """Fails what these workers have been at for longer than so many seconds. The workers concerned."""
        own = ", ".join("?" * len(workers))
        with self._transaction() as db:
            rows = db.execute(
                f"SELECT key, config, worker FROM run WHERE status = 'running' AND started < ? AND worker IN ({own})",
                (time.time() - timeout, *workers),
            ).fetchall()
            for key, config, _ in rows:
                fail(db, key, json.loads(config), f"It ran for longer than engine.timeout={timeout:g} seconds.")
        return [worker for _, _, worker in rows]

    def release_dead(self) -> None:
        """Gives back what workers of this machine hold that no longer exist (their driver was killed with them)."""
        rows = self._read("SELECT DISTINCT worker FROM run WHERE status = 'running'")
        for (worker,) in rows:
            if not may_be_alive(worker):
                self.release(worker)

    def requeue_damaged(self) -> None:
        """Puts back every trial, of any sweep, whose status or record cannot be read: it can be had again."""
        rows = self._read("SELECT key, status, record FROM run WHERE status NOT IN ('pending', 'running')")
        damaged = [(key,) for key, status, text in rows if not is_result(status, text)]
        with self._transaction() as db:
            db.executemany(f"UPDATE run SET {_AFRESH} WHERE key = ?", damaged)

    def retry_failed(self, sweep: str) -> None:
        with self._transaction() as db:
            db.execute(f"UPDATE run SET {_AFRESH} WHERE status = 'failed' AND {_OF_SWEEP}", {"sweep": sweep})

    def counts(self, sweep: str) -> Counts:
        """How many of the sweep's trials have which status.

        Raises:
            RunError: a status that does not exist.
        """
        query = f"SELECT status, COUNT(*), SUM(cost) FROM run WHERE {_OF_SWEEP} GROUP BY status"
        rows = self._read(query, {"sweep": sweep})
        check_statuses(self.path, [status for status, _, _ in rows])
        cost = sum(row[2] for row in rows if row[0] not in ("pending", "running"))
        return Counts(**{row[0]: row[1] for row in rows}, share=cost / (sum(row[2] for row in rows) or 1.0))

    def unfinished(self) -> list[dict[str, Any]]:
        """The configs of the trials, of any sweep, that have no result yet."""
        rows = self._read("SELECT key, config FROM run WHERE record IS NULL ORDER BY rowid")
        return [decode_config(self.path, *row) for row in rows]

    def finished_keys(self, sweep: str) -> list[str]:
        """In the order in which they finished."""
        query = f"SELECT key FROM run WHERE record IS NOT NULL AND {_OF_SWEEP} ORDER BY finished"
        return [key for (key,) in self._read(query, {"sweep": sweep})]

    def record(self, key: str) -> TrialRecord:
        ((text,),) = self._read("SELECT record FROM run WHERE key = ?", (key,))
        return decode(self.path, key, text)

    def metrics(self, key: str) -> list[tuple[int, str, float | None]]:
        return self._read("SELECT step, name, value FROM metric WHERE key = ? ORDER BY rowid", (key,))

    def records(self, sweep: str | None = None) -> list[TrialRecord]:
        """One record per point that is answered, with the config that the point asked for.

        A trial at the base size that answers points of several parameterizations is listed once for each.

        Raises:
            RunError: a record that is half-written or damaged.
        """
        rows = self._read(
            "SELECT run.key, run.record, point.config FROM point JOIN run USING (key) "
            "WHERE run.record IS NOT NULL AND (:sweep IS NULL OR point.sweep = :sweep) "
            "GROUP BY point.id ORDER BY MIN(point.rowid)",
            {"sweep": sweep},
        )
        return [decode(self.path, *row) for row in rows]

    def _make_tables(self) -> None:
        if not self._tables():
            self._read("PRAGMA journal_mode=WAL")  # the file keeps it
        with self._transaction() as db:
            if not self._tables():
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute("INSERT INTO meta VALUES ('version', ?)", (str(VERSION),))
        self._check_version()

    def _tables(self) -> set[str]:
        return {name for (name,) in self._read("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def _check_version(self) -> None:
        tables = self._tables()
        if not tables:
            raise RunError(f"{self.path} is half-written: it has no tables. Delete it and run the sweep again.")
        if not tables >= {"meta", "run", "point"}:
            raise RunError(f"{self.path} is another program's SQLite file, not a sweep store. Choose another run_dir.")
        rows = self._read("SELECT value FROM meta WHERE name = 'version'")
        if rows != [(str(VERSION),)]:
            raise RunError(f"{self.path} was written by another version of mutransfer. Choose another run_dir.")

    def _read(self, query: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> list[Any]:
        with readable_errors(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with readable_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
