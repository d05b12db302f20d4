"""A sweep survives whatever is killed: what has finished stays, what was in flight is retried, nothing is repeated."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mutransfer.errors import ConfigError, RunError
from mutransfer.sweep.engine import LocalEngine
from mutransfer.sweep.key import Point
from mutransfer.sweep.store import Store

TRIAL = "stub_trial:factory"
Points = Callable[[int], list[Point]]
Started = Callable[[], list[int]]

DRIVER = """
    import json, signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run as a background job
    from mutransfer.sweep.engine import LocalEngine
    from mutransfer.sweep.key import Point
    from mutransfer.sweep.store import Store
    run_dir, config = sys.argv[1], json.loads(sys.argv[2])
    points = [Point.of({**config, "seed": seed}, "corpus") for seed in range(8)]
    with Store.create(run_dir) as store:
        LocalEngine(workers=2, trial="stub_trial:factory").run(points, store)
"""


def losses(run_dir: Path) -> dict[int, float | None]:
    with Store.open(run_dir) as store:
        return {record.config["seed"]: record.val_loss for record in store.records()}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_point_is_run_once_and_a_second_run_does_nothing(tmp_path: Path, points: Points, stub: Started) -> None:
    for _ in range(2):
        with Store.create(tmp_path / "run") as store:
            records = LocalEngine(workers=2, trial=TRIAL).run(points(6), store)
        assert {record.config["seed"]: record.val_loss for record in records} == {seed: seed / 8 for seed in range(6)}
    assert sorted(stub()) == list(range(6))


def test_a_grown_sweep_runs_only_what_is_new(tmp_path: Path, points: Points, stub: Started) -> None:
    with Store.create(tmp_path / "run") as store:
        LocalEngine(workers=1, trial=TRIAL).run(points(2), store)
        LocalEngine(workers=1, trial=TRIAL).run(points(4), store)
    assert sorted(stub()) == [0, 1, 2, 3]


def test_a_sweep_leaves_the_unfinished_points_of_another_alone(tmp_path: Path, points: Points, stub: Started) -> None:
    with Store.create(tmp_path / "run") as store:
        store.add("somebody else's", points(4)[2:])
        LocalEngine(workers=1, trial=TRIAL).run(points(2), store)
    assert sorted(stub()) == [0, 1]


def test_a_killed_worker_is_replaced_and_its_trial_retried(
    tmp_path: Path, points: Points, stub: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_KILL_ONCE", "1")
    with Store.create(tmp_path / "run") as store:
        records = LocalEngine(workers=2, trial=TRIAL).run(points(4), store)
        metrics = store.metrics(points(2)[1].key)
    assert [record.status for record in records] == ["done"] * 4
    assert sorted(stub()) == [0, 1, 1, 2, 3]
    assert metrics == [(0, "train_loss", 5.0)]


def test_a_trial_that_kills_its_worker_three_times_has_failed(
    tmp_path: Path, points: Points, stub: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_KILL", "1")
    with Store.create(tmp_path / "run") as store:
        records = {r.config["seed"]: r for r in LocalEngine(workers=1, trial=TRIAL).run(points(3), store)}
    assert records[1].status == "failed"
    assert "died in this trial 3 times" in str(records[1].error)
    assert (records[0].status, records[2].status) == ("done", "done")
    assert stub().count(1) == 3


def test_an_exception_fails_its_trial_only_and_is_retried_when_asked(
    tmp_path: Path, points: Points, stub: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_RAISE", "0")
    with Store.create(tmp_path / "run") as store:
        records = {r.config["seed"]: r for r in LocalEngine(workers=1, trial=TRIAL).run(points(2), store)}
        assert (records[0].status, records[0].error) == ("failed", "RuntimeError: out of luck")
        assert records[1].status == "done"
        LocalEngine(workers=1, trial=TRIAL).run(points(2), store)
        assert stub().count(0) == 1
        monkeypatch.delenv("STUB_RAISE")
        records = {
            r.config["seed"]: r for r in LocalEngine(workers=1, trial=TRIAL, retry_failed=True).run(points(2), store)
        }
    assert records[0].status == "done"
    assert stub().count(1) == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_driver_loses_at_most_what_was_in_flight(
    tmp_path: Path, config: Callable[..., dict], stub: Started, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    import json

    monkeypatch.setenv("STUB_SECONDS", "1")
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path / "run"), json.dumps(config())]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(stub()) >= 4)
    os.kill(driver.pid, how)
    driver.wait()
    finished = losses(tmp_path / "run")
    assert 1 <= len(finished) < 8
    wait_until(lambda: not running(tmp_path / "run"))
    monkeypatch.setenv("STUB_SECONDS", "0")
    subprocess.run(command, check=True)
    assert losses(tmp_path / "run") == {seed: seed / 8 for seed in range(8)}
    repeated = {seed for seed in range(8) if stub().count(seed) > 1}
    assert len(repeated) <= 2
    assert not repeated & set(finished)


def running(run_dir: Path) -> int:
    with Store.open(run_dir) as store:
        (count,) = store._read("SELECT COUNT(*) FROM run WHERE status = 'running'")[0]
    return int(count)


def test_workers_end_when_their_driver_is_gone(
    tmp_path: Path, points: Points, stub: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SECONDS", "60")
    with Store.create(tmp_path / "run") as store:
        store.add("sweep", points(1))
    options = ["--lease", "60", "--threads", "1", "--trial", TRIAL]
    worker = subprocess.Popen(
        [sys.executable, "-m", "mutransfer.sweep.worker", str(tmp_path / "run"), "sweep", *options],
        stdin=subprocess.PIPE,
    )
    wait_until(lambda: running(tmp_path / "run") == 1)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(timeout=20) == 0
    assert running(tmp_path / "run") == 0


def test_a_worker_that_cannot_start_ends_the_sweep_with_its_reason(tmp_path: Path, points: Points) -> None:
    with Store.create(tmp_path / "run") as store, pytest.raises(RunError, match=r"cannot start .*no_such_module"):
        LocalEngine(workers=1, trial="no_such_module:factory").run(points(1), store)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "No space is left .*run.*Free some space and run .*finished trials are kept"),
        (errno.EDQUOT, "Your quota is used up .*run.*Free some of it and run .*finished trials are kept"),
        (errno.EFBIG, "No larger file is allowed .*run.*ulimit -f unlimited.* and run .*finished trials are kept"),
        (errno.EIO, "cannot start"),
    ],
)
def test_a_worker_that_dies_where_nothing_can_be_written_is_not_to_blame(
    number: int, said: str, tmp_path: Path, points: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("mutransfer.records.tempfile.TemporaryFile", refuse)
    with Store.create(tmp_path / "run") as store, pytest.raises(RunError, match=said):
        LocalEngine(workers=1, trial="no_such_module:factory").run(points(1), store)


def test_a_full_disk_ends_the_sweep_and_keeps_what_has_finished(tmp_path: Path, points: Points, stub: Started) -> None:
    with Store.create(tmp_path / "run") as store:
        LocalEngine(workers=1, trial=TRIAL).run(points(1), store)
        (pages,) = store._read("PRAGMA page_count")[0]
        store._read(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(RunError, match=r"No space is left on the device that holds .*run the same command again"):
            LocalEngine(workers=1, trial=TRIAL).run(points(200), store)
    assert losses(tmp_path / "run") == {0: 0.0}


def test_the_longest_trials_start_first(tmp_path: Path, config: Callable[..., dict], stub: Started) -> None:
    widths = {0: 32, 1: 128, 2: 64}
    points = [Point.of(config(seed=seed, **{"model.width": width}), "corpus") for seed, width in widths.items()]
    with Store.create(tmp_path / "run") as store:
        LocalEngine(workers=1, trial=TRIAL).run(points, store)
    assert stub() == [1, 2, 0]


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"threads": 0}, {"lease": 0.1}, {"timeout": 0}])
def test_impossible_engines_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LocalEngine(**wrong)  # type: ignore[arg-type]


def test_a_trial_whose_record_is_half_written_is_trained_anew_by_the_next_sweep(
    tmp_path: Path, points: Points, stub: Started
) -> None:
    with Store.create(tmp_path / "run") as store:
        LocalEngine(workers=1, trial=TRIAL).run(points(3), store)
        store._read("UPDATE run SET record = substr(record, 1, 40) WHERE key = ?", (points(2)[1].key,))
        LocalEngine(workers=1, trial=TRIAL).run(points(3), store)
    assert losses(tmp_path / "run") == {seed: seed / 8 for seed in range(3)}
    assert sorted(stub()) == [0, 1, 1, 2]


def test_a_trial_that_hangs_fails_after_its_time_and_the_others_are_trained(
    tmp_path: Path, points: Points, stub: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_HANG", "1")
    with Store.create(tmp_path / "run") as store:
        records = {r.config["seed"]: r for r in LocalEngine(workers=1, timeout=2.0, trial=TRIAL).run(points(3), store)}
        assert (records[1].status, records[1].error) == ("failed", "It ran for longer than engine.timeout=2 seconds.")
        assert (records[0].status, records[2].status) == ("done", "done")
        assert sorted(stub()) == [0, 1, 2]
        monkeypatch.delenv("STUB_HANG")
        again = LocalEngine(workers=1, trial=TRIAL, retry_failed=True).run(points(3), store)
    assert [record.status for record in again] == ["done"] * 3


def test_a_timeout_ends_no_trial_of_another_driver(tmp_path: Path, points: Points) -> None:
    with Store.create(tmp_path / "run") as store:
        store.add("sweep", points(2))
        for worker in ("own", "other"):
            store.claim("sweep", worker, lease=60)
        assert store.time_out(["own"], 60) == []
        assert store.time_out(["own"], -1) == ["own"]
        assert (store.counts("sweep").running, store.counts("sweep").failed) == (1, 1)
