"""What a worker does with the trials that it claims, seen from inside one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mutransfer.errors import DataError, RunError
from mutransfer.records import TrialRecord
from mutransfer.sweep.key import Point, trial_key
from mutransfer.sweep.store import Store
from mutransfer.sweep.worker import work

Points = Callable[[int], list[Point]]


@pytest.fixture
def store(tmp_path: Path, points: Points) -> Store:
    """Two points of the sweep "sweep", nothing run yet."""
    store = Store.create(tmp_path)
    store.add("sweep", points(2))
    return store


def done(config: Mapping[str, Any], corpus: str = "corpus") -> TrialRecord:
    return TrialRecord(key=trial_key(config, corpus), config=config, status="done", val_loss=1.0)


def statuses(store: Store) -> list[str]:
    return [record.status for record in store.records()]


def test_it_runs_everything_and_stops(store: Store) -> None:
    work(store, "sweep", lease=60, trial=lambda config, metrics: done(config))
    assert statuses(store) == ["done", "done"]


def test_metrics_are_in_the_store_by_the_end(store: Store, points: Points, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mutransfer.sweep.worker.FLUSH_SECONDS", -1)

    def trial(config: Mapping[str, Any], metrics: Callable[..., None]) -> TrialRecord:
        metrics(10, {"train_loss": 3.0})
        metrics(20, {"train_loss": 2.0, "val_loss": 2.5})
        return done(config)

    work(store, "sweep", lease=60, trial=trial)
    assert store.metrics(points(1)[0].key) == [(10, "train_loss", 3.0), (20, "train_loss", 2.0), (20, "val_loss", 2.5)]


def test_what_goes_wrong_in_a_trial_is_its_result(store: Store) -> None:
    def trial(config: Mapping[str, Any], metrics: object) -> TrialRecord:
        raise DataError("The text is gone.") if config["seed"] else ValueError("no luck")

    work(store, "sweep", lease=60, trial=trial)
    assert {record.error for record in store.records()} == {"The text is gone.", "ValueError: no luck"}


def test_a_trial_on_other_data_than_the_sweep_was_made_for_has_failed(store: Store) -> None:
    work(store, "sweep", lease=60, trial=lambda config, metrics: done(config, "another corpus"))
    assert statuses(store) == ["failed", "failed"]
    assert "The data has changed" in str(store.records()[0].error)


def test_a_store_that_cannot_be_written_ends_the_worker(store: Store) -> None:
    def trial(config: Mapping[str, Any], metrics: object) -> TrialRecord:
        raise RunError("The disk is full.")

    with pytest.raises(RunError, match="disk is full"):
        work(store, "sweep", lease=60, trial=trial)


def test_a_long_trial_keeps_its_lease(store: Store) -> None:
    first = store.claim("sweep", "elsewhere", lease=60)
    assert first is not None
    store.finish("elsewhere", done(first.config))
    stolen = []

    def trial(config: Mapping[str, Any], metrics: object) -> TrialRecord:
        time.sleep(1.5)
        with Store.open(store.path.parent) as other:
            stolen.append(other.claim("sweep", "thief", lease=60))
        return done(config)

    work(store, "sweep", lease=1, trial=trial)
    assert stolen == [None]
    assert statuses(store) == ["done", "done"]


def test_it_waits_for_trials_that_others_may_still_lose(store: Store) -> None:
    with Store.open(store.path.parent) as other:
        lost = other.claim("sweep", "elsewhere", lease=60)
    assert lost is not None
    waiting = threading.Thread(
        target=lambda: work(Store.open(store.path.parent), "sweep", lease=60, trial=lambda c, m: done(c))
    )
    waiting.start()
    while store.counts("sweep").done < 1:
        time.sleep(0.01)
    assert waiting.is_alive()
    store.release("elsewhere")
    waiting.join(timeout=20)
    assert statuses(store) == ["done", "done"]
