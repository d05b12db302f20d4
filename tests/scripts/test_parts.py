"""Units of work: kept at once, never repeated, stopped in time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.parts import Budget, Part, Unit, run_part

from mutransfer.errors import ConfigError

HERE = {"device": "a test"}


class Recorder:
    """Makes parts whose units note that they ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran = folder, list[str]()

    def part(self, settings: dict[str, Any] | None = None, guess: float = 1.0, **runs: Callable[[], Any]) -> Part:
        def noted(name: str, run: Callable[[], Any]) -> Callable[[], Any]:
            def unit() -> Any:
                self.ran.append(name)
                return run()

            return unit

        units = [Unit(name, noted(name, run), "kind", guess) for name, run in runs.items()]
        return Part("part", settings or {}, units, lambda results: {"sum": sum(results.values())}, str)

    def run(self, part: Part, budget: Budget | None = None) -> str:
        return run_part(part, self.folder, HERE, budget or Budget(60))

    @property
    def written(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "part.json").read_text())
        return content


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


def test_what_is_done_is_not_repeated(recorder: Recorder) -> None:
    part = recorder.part(a=lambda: 1, b=lambda: 2)
    assert recorder.run(part) == recorder.run(part) == "done"
    assert recorder.ran == ["a", "b"]
    assert recorder.written["summary"] == {"sum": 3}
    assert recorder.written["units"]["a"]["device"] == "a test"


def test_a_unit_added_later_is_all_that_runs(recorder: Recorder) -> None:
    recorder.run(recorder.part(a=lambda: 1))
    recorder.run(recorder.part(a=lambda: 1, b=lambda: 2))
    assert recorder.ran == ["a", "b"]


def test_every_unit_is_on_disk_before_the_next_begins(recorder: Recorder) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorder.run(recorder.part(a=lambda: 1, b=interrupted, c=lambda: 3))
    assert recorder.written["units"]["a"]["result"] == 1
    assert recorder.written["left"] == ["b", "c"]


def test_a_unit_that_fails_costs_no_other_and_is_tried_again(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise MemoryError("no more")

    assert recorder.run(recorder.part(a=broken, b=lambda: 2)) == "failed"
    assert recorder.written["units"]["a"]["error"] == "MemoryError: no more"
    assert recorder.written["left"] == ["a"]
    assert "failed: a" in capsys.readouterr().out
    assert recorder.run(recorder.part(a=lambda: 1, b=lambda: 2)) == "done"
    assert recorder.ran == ["a", "b", "a"]


def test_a_unit_that_outlasts_the_budget_is_interrupted_and_not_kept(recorder: Recorder) -> None:
    def endless() -> None:
        while True:
            with contextlib.suppress(Exception):
                sum(range(1000))

    part = recorder.part(guess=0.01, a=lambda: 1, b=endless, c=lambda: 3)
    assert recorder.run(part, Budget(1.0)) == "left"
    assert recorder.ran == ["a", "b"]
    assert list(recorder.written["units"]) == ["a"]


def test_a_unit_that_will_not_fit_is_not_begun(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    part = recorder.part(a=lambda: 1)
    assert recorder.run(part, Budget(0.9)) == "left"
    assert recorder.ran == []
    assert "1 of 1 left: a. Run the same command again." in capsys.readouterr().out
    assert recorder.run(part, Budget(60)) == "done"


def test_after_the_first_of_a_kind_its_time_is_the_guess(recorder: Recorder) -> None:
    class Shrinking(Budget):
        """Less is left than the guess of 1 s as soon as one unit has run."""

        def left(self) -> float:
            return 0.5 if recorder.ran else 60.0

    assert recorder.run(recorder.part(a=lambda: 1, b=lambda: 2), Shrinking(60)) == "done"
    assert recorder.ran == ["a", "b"]


def test_results_of_other_settings_are_not_mixed(recorder: Recorder) -> None:
    recorder.run(recorder.part({"width": 64}, a=lambda: 1))
    with pytest.raises(ConfigError, match="made with other settings"):
        recorder.run(recorder.part({"width": 128}, a=lambda: 1))
    assert recorder.written["settings"] == {"width": 64}
