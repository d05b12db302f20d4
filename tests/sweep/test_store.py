"""The store keeps what has finished, hands each trial to one worker, and explains whatever is wrong with its file."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mutransfer.errors import RunError
from mutransfer.records import TrialRecord
from mutransfer.sweep.key import Point
from mutransfer.sweep.store import FILE_NAME, Store

Points = Callable[[int], list[Point]]


def done(point: Point, **values: Any) -> TrialRecord:
    return TrialRecord(key=point.key, config=point.config, status="done", val_loss=2.0, **values)


def test_a_trial_is_leased_to_one_worker_at_a_time(tmp_path: Path, points: Points) -> None:
    with Store.create(tmp_path) as store, Store.open(tmp_path) as other:
        store.add("sweep", points(1))
        assert store.claim("sweep", "a", lease=60) is not None
        assert other.claim("sweep", "b", lease=60) is None


def test_an_expired_lease_goes_to_another_and_the_late_result_is_dropped(tmp_path: Path, points: Points) -> None:
    (point,) = points(1)
    with Store.create(tmp_path) as store:
        store.add("sweep", [point])
        store.claim("sweep", "a", lease=-1)
        assert store.claim("sweep", "b", lease=60) is not None
        assert not store.renew(point.key, "a", lease=60)
        assert not store.finish("a", done(point))
        assert store.finish("b", done(point))


def test_a_renewed_lease_holds(tmp_path: Path, points: Points) -> None:
    (point,) = points(1)
    with Store.create(tmp_path) as store:
        store.add("sweep", [point])
        store.claim("sweep", "a", lease=-1)
        assert store.renew(point.key, "a", lease=60)
        assert store.claim("sweep", "b", lease=60) is None


def test_a_finished_trial_is_never_changed(tmp_path: Path, points: Points) -> None:
    (point,) = points(1)
    with Store.create(tmp_path) as store:
        store.add("sweep", [point])
        store.claim("sweep", "a", lease=60)
        store.finish("a", done(point, steps=1))
        assert not store.finish("a", done(point, steps=2))
        store.add("another sweep", [point])
        assert store.claim("another sweep", "a", lease=60) is None
        assert store.record(point.key).steps == 1


def test_being_interrupted_does_not_count_as_a_death(tmp_path: Path, points: Points) -> None:
    with Store.create(tmp_path) as store:
        store.add("sweep", points(1))
        for _ in range(5):
            assert store.claim("sweep", "a", lease=60) is not None
            store.release("a")
        for _ in range(3):
            assert store.claim("sweep", "a", lease=60) is not None
            store.crashed("a")
        assert store.claim("sweep", "a", lease=60) is None
        assert store.counts("sweep").failed == 1


def test_what_a_dead_process_held_is_given_back_and_what_a_live_one_holds_is_not(
    tmp_path: Path, points: Points
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with Store.create(tmp_path) as store:
        store.add("sweep", points(3))
        for pid in (gone.pid, os.getpid()):
            store.claim("sweep", f"{socket.gethostname()}:{pid}", lease=60)
        store.claim("sweep", "another machine:1", lease=60)
        store.release_dead()
        counts = store.counts("sweep")
    assert (counts.pending, counts.running) == (1, 2)


def test_a_shared_trial_is_listed_for_each_parameterization(tmp_path: Path, config: Callable[..., dict]) -> None:
    names = ("mup", "sp")
    mup, sp = (Point.of(config(**{"parameterization.name": name}), "corpus") for name in names)
    with Store.create(tmp_path) as store:
        store.add("first", [mup])
        store.add("second", [sp])
        store.claim("first", "a", lease=60)
        store.finish("a", done(mup))
        records = store.records()
        assert {record.config["parameterization"]["name"] for record in records} == set(names)
        assert [record.config["parameterization"]["name"] for record in store.records("second")] == ["sp"]
        assert store.counts("second").finished == 1


def test_another_corpus_under_the_same_name_is_refused(tmp_path: Path) -> None:
    with Store.create(tmp_path) as store:
        store.pin_data({"name": "stdlib"}, "a" * 64)
        store.pin_data({"name": "stdlib"}, "a" * 64)
        store.pin_data({"name": "digits"}, "b" * 64)
        with pytest.raises(RunError, match=r"another corpus .*aaaaaaaaaaaa, now bbbbbbbbbbbb"):
            store.pin_data({"name": "stdlib"}, "b" * 64)


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=f"is not a run directory: it has no {FILE_NAME}"):
        Store.open(tmp_path)


def test_a_half_written_store_is_explained_and_a_sweep_can_go_on_with_it(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    with pytest.raises(RunError, match="half-written"):
        Store.open(tmp_path)
    Store.create(tmp_path).close()
    Store.open(tmp_path).close()


@pytest.mark.parametrize("keep", [100, 5000])
def test_a_damaged_store_is_explained(tmp_path: Path, points: Points, keep: int) -> None:
    with Store.create(tmp_path) as store:
        store.add("sweep", points(40))
    file = tmp_path / FILE_NAME
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"damaged|half-written"), Store.open(tmp_path) as store:
        store.counts("sweep")
    file.write_text("these are somebody's notes, and they are longer than the header of a data base would be. " * 3)
    with pytest.raises(RunError, match="not a sweep store"):
        Store.create(tmp_path)


def test_a_directory_that_cannot_be_made_or_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"Cannot write .*a file stands where a folder is needed"):
        Store.create(tmp_path / "file" / "run")
    (tmp_path / "run" / FILE_NAME).mkdir(parents=True)
    with pytest.raises(RunError, match="No permission to read or write"):
        Store.create(tmp_path / "run")


@pytest.fixture
def finished(tmp_path: Path, points: Points) -> Path:
    """A run directory with one result, where SQLite can make no index beside the file, as on a full disk."""
    (point,) = points(1)
    with Store.create(tmp_path / "run") as store:
        store.add("sweep", [point])
        store.claim("sweep", "a", lease=60)
        store.finish("a", done(point))
    (tmp_path / "run" / f"{FILE_NAME}-shm").symlink_to(tmp_path / "nowhere" / "index")
    return tmp_path / "run"


def test_results_are_read_where_nothing_can_be_written(finished: Path) -> None:
    before = (finished / FILE_NAME).read_bytes()
    with Store.read_only(finished) as store:
        assert [record.val_loss for record in store.records()] == [2.0]
        with pytest.raises(RunError):
            store.release("a")
    assert (finished / FILE_NAME).read_bytes() == before
    with pytest.raises(RunError):
        Store.open(finished)


def test_results_that_only_the_log_holds_are_not_passed_over(finished: Path) -> None:
    (finished / f"{FILE_NAME}-wal").write_bytes(b"results of a sweep that was killed")
    with pytest.raises(RunError, match=r"The last results are in .*-wal.*Copy .*run to another disk"):
        Store.read_only(finished)


def test_a_reader_sees_what_a_running_sweep_has_finished(tmp_path: Path, points: Points) -> None:
    (point,) = points(1)
    with Store.create(tmp_path) as store, Store.read_only(tmp_path) as reader:
        assert reader.records() == []
        store.add("sweep", [point])
        store.claim("sweep", "a", lease=60)
        store.finish("a", done(point))
        assert len(reader.records()) == 1


@pytest.mark.parametrize("table", ["meta (name TEXT)", "songs (title TEXT)"])
def test_another_programs_data_base_is_called_that_and_left_alone(tmp_path: Path, table: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as theirs:
        theirs.execute(f"CREATE TABLE {table}")
    before = (tmp_path / FILE_NAME).read_bytes()
    for door in (Store.create, Store.open, Store.read_only):
        with pytest.raises(RunError, match="another program's SQLite file"):
            door(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_full_disk_is_explained_and_loses_nothing(tmp_path: Path, points: Points) -> None:
    with Store.create(tmp_path) as store:
        store.add("sweep", points(1))
        (pages,) = store._read("PRAGMA page_count")[0]
        store._read(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(RunError, match="No space is left"):
            store.add("sweep", points(300))
        assert store.counts("sweep").total == 1


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """`file_limit(100_000)`: what `ulimit -f` does, until the test's end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files_is_told_from_a_full_disk_and_loses_nothing(
    tmp_path: Path, points: Points, file_limit: Callable[[int], None]
) -> None:
    with Store.create(tmp_path) as store:
        finish_all(store, points(1))
        size = max(file.stat().st_size for file in tmp_path.iterdir())
        file_limit(size + 100_000)
        with pytest.raises(RunError, match=r"No larger file is allowed .*ulimit -f.*finished trials are kept"):
            store.add("sweep", points(2000))
        assert [record.val_loss for record in store.records()] == [2.0]


def finish_all(store: Store, chosen: list[Point]) -> None:
    store.add("sweep", chosen)
    while claim := store.claim("sweep", "a", lease=60):
        store.finish("a", TrialRecord(key=claim.key, config=claim.config, status="done", val_loss=2.0))


@pytest.mark.parametrize("text", ['{"key": "k", "conf', "[]", "", None])
def test_a_half_written_record_is_named_and_its_trial_alone_is_put_back(
    text: str | None, tmp_path: Path, points: Points
) -> None:
    whole, broken = points(2)
    with Store.create(tmp_path) as store:
        finish_all(store, [whole, broken])
        store._read("UPDATE run SET record = ? WHERE key = ?", (text, broken.key))
        named = rf"trial {broken.key[:12]} in .*{FILE_NAME} is damaged"
        with pytest.raises(RunError, match=named):
            store.record(broken.key)
        store.requeue_damaged()
        assert (store.counts("sweep").pending, store.counts("sweep").done) == (1, 1)
        assert [record.key for record in store.records()] == [whole.key]


@pytest.mark.parametrize("text", ['{"model": {"wid', "3", "{}", "[]", "null"])
def test_a_damaged_config_is_named_and_written_anew_when_any_sweep_asks_for_its_point_again(
    text: str, tmp_path: Path, points: Points
) -> None:
    point, other = points(2)
    with Store.create(tmp_path) as store:
        store.add("sweep", [point])
        store.claim("sweep", "a", lease=60)
        store.finish("a", done(point))
        store._read("UPDATE point SET config = ?", (text,))
        named = rf"config of trial {point.key[:12]} in .*{FILE_NAME} is damaged\. Run its sweep again"
        with pytest.raises(RunError, match=named):
            store.records()
        store.add("another sweep", [point, other])
        assert [record.config for record in store.records()] == [point.config]


def test_a_trial_whose_config_is_damaged_before_it_is_trained_is_named_and_mended(
    tmp_path: Path, points: Points
) -> None:
    (point,) = points(1)
    with Store.create(tmp_path) as store:
        store.add("sweep", [point])
        store._read("UPDATE run SET config = '3'")
        with pytest.raises(RunError, match=f"config of trial {point.key[:12]} in .*is damaged"):
            store.claim("sweep", "a", lease=-1)
        store.add("sweep", [point])
        claim = store.claim("sweep", "a", lease=60)
    assert claim is not None
    assert claim.config == point.config


@pytest.mark.parametrize("status", ["finished", "failed", 3])
def test_a_damaged_status_is_named_and_its_trial_alone_is_put_back(
    status: object, tmp_path: Path, points: Points
) -> None:
    whole, broken = points(2)
    with Store.create(tmp_path) as store:
        finish_all(store, [whole, broken])
        store._read("UPDATE run SET status = ? WHERE key = ?", (status, broken.key))
        if status != "failed":
            with pytest.raises(RunError, match=rf"{FILE_NAME} has the status '{status}', .*Run its sweep again"):
                store.counts("sweep")
        store.requeue_damaged()
        assert (store.counts("sweep").pending, store.counts("sweep").done) == (1, 1)
