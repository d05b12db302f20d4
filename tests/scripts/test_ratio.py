"""The median of paired timings finds a planted overhead and no other."""

from __future__ import annotations

import time

import numpy as np
import pytest
from benchmarks.clocks import cpu_clock
from benchmarks.ratio import Comparison, interleave, paired_ratio


def timings(ratio: float, seed: int, pairs: int = 60, noise: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
    """Pairs on a machine that others slow down for long stretches, with outliers on either side."""
    rng = np.random.default_rng(seed)
    machine = np.exp(np.repeat(rng.normal(0, 0.5, pairs // 10), 10))
    sides = machine * np.exp(rng.normal(0, noise, (2, pairs)))
    sides[rng.random((2, pairs)) < 0.05] *= 3
    return ratio * sides[0], sides[1]


@pytest.mark.parametrize(("planted", "verdict"), [(1.0, "pass"), (1.05, "fail"), (1.03, "undecided")])
def test_a_planted_overhead_is_found_and_its_absence_too(planted: float, verdict: str) -> None:
    ratio = paired_ratio(*timings(planted, seed=1))
    assert ratio.low < planted < ratio.high
    assert ratio.verdict(1.03) == verdict


def test_it_is_the_pairing_that_finds_it() -> None:
    times, reference = timings(1.05, seed=1)
    assert paired_ratio(times, reference[::-1]).verdict(1.03) == "undecided"


def test_the_bounds_are_what_they_say() -> None:
    ratios = [paired_ratio(*timings(1.02, seed)) for seed in range(100)]
    assert 88 <= sum(r.high >= 1.02 for r in ratios) <= 100
    assert 88 <= sum(r.low <= 1.02 for r in ratios) <= 100
    assert sum(r.high >= 1.05 for r in ratios) < 50


@pytest.mark.parametrize(("times", "reference"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_what_is_not_pairs_is_refused(times: list[float], reference: list[float]) -> None:
    with pytest.raises(ValueError, match="not at least two pairs"):
        paired_ratio(times, reference)


def test_pairs_alternate_who_goes_first_and_share_out_the_machine() -> None:
    ran: list[str] = []

    def clock(step: object, count: int) -> float:
        for _ in range(count):
            step()  # type: ignore[operator]
        return 2.0 * count

    compared = {
        name: Comparison(lambda name=name: ran.append(name), lambda name=name: ran.append(f"{name}-reference"))
        for name in ("a", "b")
    }
    times = interleave(compared, clock, pairs=2, steps=1)
    first, second = ["a", "a-reference", "b", "b-reference"], ["a-reference", "a", "b-reference", "b"]
    assert ran == first + second
    assert times == {name: ([2.0, 2.0], [2.0, 2.0]) for name in ("a", "b")}
    ran.clear()
    assert interleave(compared, clock, pairs=1, steps=3)["a"] == ([2.0], [2.0])
    assert ran[:6] == ["a"] * 3 + ["a-reference"] * 3


def test_waiting_is_not_counted() -> None:
    assert cpu_clock(lambda: time.sleep(0.1), 1) < 0.05 < cpu_clock(lambda: sum(range(10_000_000)), 1)
