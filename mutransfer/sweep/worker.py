"""A worker process: claims trials from the store one after another, until the sweep is done or its driver is gone."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mutransfer.errors import DataError, MutransferError, RunError
from mutransfer.records import TrialRecord
from mutransfer.sweep.processes import worker_name
from mutransfer.sweep.store import Claim, Store

POLL_SECONDS = 0.2
FLUSH_SECONDS = 1.0
EXIT_STORE = 4
"""The exit code that tells the driver that the store cannot be written: no other worker would fare better."""

Trial = Callable[[Mapping[str, Any], Callable[[int, Mapping[str, float]], None]], TrialRecord]


def main() -> None:
    """Entry point: `python -m mutransfer.sweep.worker RUN_DIR SWEEP --lease SECONDS`, its driver holding stdin open."""
    parser = argparse.ArgumentParser(prog="mutransfer.sweep.worker")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("sweep")
    parser.add_argument("--lease", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--trial", required=True, help="package.module:name of a callable (threads) -> Trial")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_the_driver, args=(options.run_dir,), daemon=True).start()
    try:
        with Store.open(options.run_dir) as store:
            work(store, options.sweep, lease=options.lease, trial=_load_trial(options.trial, options.threads))
    except RunError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(EXIT_STORE)


def work(store: Store, sweep: str, *, lease: float, trial: Trial) -> None:
    """Runs the sweep's trials until none is left to run or to wait for."""
    worker = worker_name()
    while True:
        claim = store.claim(sweep, worker, lease)
        if claim is not None:
            _run(store, worker, claim, lease, trial)
            continue
        if not store.counts(sweep).unfinished:
            return
        time.sleep(POLL_SECONDS)


def _run(store: Store, worker: str, claim: Claim, lease: float, trial: Trial) -> None:
    metrics = _Metrics(store, claim.key)
    with _Heartbeat(store.path.parent, claim.key, worker, lease):
        record = _attempt(claim, trial, metrics)
    metrics.flush()
    store.finish(worker, record)


def _attempt(claim: Claim, trial: Trial, metrics: _Metrics) -> TrialRecord:
    """The trial's record; whatever goes wrong inside a trial is that trial's result, not the sweep's end."""
    try:
        record = trial(claim.config, metrics)
        if record.key != claim.key:
            raise DataError("The data has changed since the sweep started. Start a new sweep in another run_dir.")
        return record
    except RunError:
        raise
    except Exception as error:
        traceback.print_exc()
        message = str(error) if isinstance(error, MutransferError) else f"{type(error).__name__}: {error}"
        return TrialRecord(key=claim.key, config=claim.config, status="failed", error=message)


def _load_trial(name: str, threads: int) -> Trial:
    """Imports torch only here, in the worker that needs it."""
    module, _, attribute = name.partition(":")
    trial: Trial = getattr(importlib.import_module(module), attribute)(threads)
    return trial


class _Metrics:
    """Collects a trial's metrics and writes them about once a second, one transaction each."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._rows: list[tuple[int, str, float | None]] = []
        self._flushed = time.monotonic()

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        self._rows += [(step, name, float(value)) for name, value in values.items()]
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._store.log(self._key, self._rows)
        self._rows, self._flushed = [], time.monotonic()


class _Heartbeat:
    """Renews a lease from a thread of its own, with a connection of its own, while a trial runs."""

    def __init__(self, run_dir: Path, key: str, worker: str, lease: float) -> None:
        self._run_dir, self._key, self._worker, self._lease = run_dir, key, worker, lease
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._lease / 4):
            try:
                with Store.open(self._run_dir) as store:
                    store.renew(self._key, self._worker, self._lease)
            except RunError as error:
                print(f"heartbeat: {error}", file=sys.stderr, flush=True)


def _die_with_the_driver(run_dir: Path) -> None:
    """Ends this process, its trial given back, as soon as the driver closes stdin or dies in any way."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    try:
        with Store.open(run_dir) as store:
            store.release(worker_name())
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
