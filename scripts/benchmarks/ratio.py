"""How much longer one thing takes than another, from interleaved pairs of timings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Verdict = Literal["pass", "fail", "undecided"]
Step = Callable[[], None]
Clock = Callable[[Step, int], float]
"""(step, count) -> seconds that so many steps took."""

DRAWS = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios.

    Attributes:
        value: the median of time / reference time.
        low, high: one-sided 95 % bounds, by the bootstrap over pairs.
        pairs: how many.
        seconds, reference_seconds: median time of one step of each.
    """

    value: float
    low: float
    high: float
    pairs: int
    seconds: float
    reference_seconds: float

    def verdict(self, limit: float) -> Verdict:
        """Whether the true ratio is at most `limit`, as far as the bounds tell."""
        if self.high <= limit:
            return "pass"
        return "fail" if self.low > limit else "undecided"


def paired_ratio(times: Sequence[float], reference: Sequence[float], *, seed: int = 0) -> Ratio:
    """The ratio of paired timings; a slow stretch of the machine hits both of a pair and cancels.

    Args:
        times, reference: seconds; entry k of both belongs to pair k.
        seed: of the bootstrap.
    """
    if len(times) != len(reference) or len(times) < 2:
        raise ValueError(f"{len(times)} timings and {len(reference)} reference timings are not at least two pairs.")
    logs = np.log(np.asarray(times, float)) - np.log(np.asarray(reference, float))
    drawn = np.random.default_rng(seed).integers(len(logs), size=(DRAWS, len(logs)))
    low, high = np.quantile(np.median(logs[drawn], axis=1), [1 - LEVEL, LEVEL])
    value, low, high = (float(np.exp(x)) for x in (np.median(logs), low, high))
    return Ratio(value, low, high, len(logs), float(np.median(times)), float(np.median(reference)))


@dataclass(frozen=True)
class Comparison:
    """Two steps to be timed against each other."""

    step: Step
    reference: Step


def interleave(
    comparisons: Mapping[str, Comparison],
    clock: Clock,
    *,
    pairs: int,
    steps: int,
    progress: Callable[[int], Any] = lambda done: None,
) -> dict[str, tuple[list[float], list[float]]]:
    """Times all comparisons in turn, pair by pair; who goes first alternates.

    Args:
        pairs: per comparison.
        steps: timed together, on each side of a pair.
        progress: called with the number of pairs done.

    Returns:
        name -> (seconds per step, seconds per reference step), pair by pair.
    """
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in comparisons}
    for pair in range(pairs):
        for name, compared in comparisons.items():
            sides = [(compared.step, times[name][0]), (compared.reference, times[name][1])]
            for step, into in sides if pair % 2 == 0 else reversed(sides):
                into.append(clock(step, steps) / steps)
        progress(pair + 1)
    return times
