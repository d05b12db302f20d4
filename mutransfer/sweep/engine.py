"""The local engine: a pool of persistent worker processes, one thread each, that empty a sweep's queue.

The driver only starts workers, watches them and reports; the store is the only thing they share. Whatever is killed,
the trials that had finished stay, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mutransfer.errors import ConfigError, RunError
from mutransfer.records import TrialRecord, cannot_write
from mutransfer.sweep.key import Point, sweep_id
from mutransfer.sweep.processes import worker_name
from mutransfer.sweep.sqlite import stopped, what_stops
from mutransfer.sweep.store import Counts, Store
from mutransfer.sweep.worker import EXIT_STORE

POLL_SECONDS = 0.1
SHUTDOWN_SECONDS = 5.0
MAX_EARLY_DEATHS = 3
TRIAL = "mutransfer.sweep.trial:Trials"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

Watch = Callable[[Counts, Sequence[TrialRecord]], None]


@dataclass(frozen=True)
class LocalEngine:
    """How a sweep is run on this machine.

    Attributes:
        workers: processes; None for one per CPU core, or one per GPU where trials run on GPUs.
        threads: per worker. One is fastest on a busy CPU (measured: 5 to 27 times over two).
        lease: seconds after which a trial whose worker has gone silent is given to another.
        timeout: seconds after which a trial has failed, and its worker is replaced; None for no limit.
        gpus: the devices to spread the workers over, as CUDA_VISIBLE_DEVICES names them; empty for CPU.
        retry_failed: whether trials that failed in an earlier call are tried again.
        trial: `package.module:name` of a callable (threads) -> trial function.
    """

    workers: int | None = None
    threads: int = 1
    lease: float = 60.0
    timeout: float | None = None
    gpus: tuple[str, ...] = ()
    retry_failed: bool = False
    trial: str = TRIAL

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(
                f"engine.workers={self.workers}: at least one worker is needed, or null for one per core."
            )
        if self.threads < 1:
            raise ConfigError(f"engine.threads={self.threads}: a worker needs at least one thread.")
        if self.lease < 1:
            raise ConfigError(f"engine.lease={self.lease}: a lease must last at least one second.")
        if self.timeout is not None and not self.timeout > 0:
            raise ConfigError(f"engine.timeout={self.timeout}: it must be greater than 0, or null for no limit.")

    def run(self, points: Sequence[Point], store: Store, watch: Watch | None = None) -> list[TrialRecord]:
        """Runs what is not finished of these points and gives back the records of all of them.

        Args:
            watch: called about ten times a second with the counts and the records that are new since the last.

        Raises:
            RunError: no worker can start, or the store cannot be written.
        """
        sweep = sweep_id(points)
        store.release_dead()
        store.requeue_damaged()
        store.add(sweep, points)
        if self.retry_failed:
            store.retry_failed(sweep)
        known = set(store.finished_keys(sweep))
        with self._pool(store.path.parent, sweep, min(self._size(), store.counts(sweep).unfinished)) as pool:
            self._wait(pool, store, sweep, known, watch)
        return store.records(sweep)

    def _size(self) -> int:
        return self.workers or len(self.gpus) or _cores()

    def _wait(self, pool: list[_Worker], store: Store, sweep: str, seen: set[str], watch: Watch | None) -> None:
        while True:
            keys = store.finished_keys(sweep)
            new = [store.record(key) for key in keys if key not in seen]
            seen.update(keys)
            counts = store.counts(sweep)
            if watch is not None:
                watch(counts, new)
            if not counts.unfinished:
                return
            self._end_overdue(pool, store)
            for worker in pool:
                worker.revive(store)
            time.sleep(POLL_SECONDS)

    def _end_overdue(self, pool: list[_Worker], store: Store) -> None:
        if self.timeout is None:
            return
        overdue = store.time_out([worker.name for worker in pool], self.timeout)
        for worker in pool:
            if worker.name in overdue:
                worker.replace(store)

    @contextlib.contextmanager
    def _pool(self, run_dir: Path, sweep: str, size: int) -> Iterator[list[_Worker]]:
        pool = [
            _Worker(self._command(run_dir, sweep), self._environment(slot), run_dir / "logs" / f"worker-{slot}.log")
            for slot in range(size)
        ]
        try:
            for worker in pool:
                worker.start()
            yield pool
        finally:
            for worker in pool:
                worker.dismiss()
            deadline = time.monotonic() + SHUTDOWN_SECONDS
            for worker in pool:
                worker.bury(deadline)

    def _command(self, run_dir: Path, sweep: str) -> list[str]:
        options = ["--lease", str(self.lease), "--threads", str(self.threads), "--trial", self.trial]
        return [sys.executable, "-m", "mutransfer.sweep.worker", str(run_dir), sweep, *options]

    def _environment(self, slot: int) -> dict[str, str]:
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(self.threads))}
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return environment


def _cores() -> int:
    """The CPU cores that this process may use (a container or taskset may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Worker:
    """One slot of the pool: a process, and another one when it dies."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    early_deaths: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """As the store knows the process that runs now."""
        assert self._process is not None
        return worker_name(self._process.pid)

    def start(self) -> None:
        """In a session of its own, so that Ctrl-C reaches the driver alone; it ends when its stdin closes."""
        with self._open_log() as log:
            self._process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def revive(self, store: Store) -> None:
        """Starts a successor if this worker has died with work left; its trial goes back to the queue."""
        assert self._process is not None
        code = self._process.poll()
        if code is None or code == 0:
            return
        self._refuse_full_device()  # there a worker cannot even say in its log what has ended it
        if code == EXIT_STORE:
            raise RunError(self._last_line())
        keys = store.crashed(self.name)
        self.early_deaths = 0 if keys else self.early_deaths + 1
        if self.early_deaths == MAX_EARLY_DEATHS:
            raise RunError(f"A worker process cannot start ({self._last_line()}). Its output is in {self.log}.")
        self._close_stdin()
        self.start()

    def replace(self, store: Store) -> None:
        """Ends this worker whatever it is at, and starts another; a trial that it has taken meanwhile goes back."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        store.release(self.name)
        self._close_stdin()
        self.start()

    def dismiss(self) -> None:
        if self._process is not None:
            self._close_stdin()

    def bury(self, deadline: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close_stdin(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _open_log(self) -> IO[bytes]:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            return self.log.open("ab")
        except OSError as error:
            self._refuse_full_device()
            raise RunError(cannot_write(self.log, error)) from None

    def _refuse_full_device(self) -> None:
        run_dir = self.log.parents[1]
        if (refused := what_stops(run_dir)) is not None:
            raise RunError(stopped(run_dir, refused))

    def _last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"
