"""Exponents in width with intervals: log-log slopes over seeds, their variance shrunk across tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

OWN_LEVEL = 0.95
"""Of one interval by itself. A check passes when every tensor's own lies inside the law's margin: a tensor that is off
by the margin passes with (1 - 0.95) / 2, however many others there are (an intersection-union test, Berger 1982,
Technometrics 24:295), so that what is claimed of all needs no more of each."""
PRIOR_FREEDOM = 4
"""Weight, in degrees of freedom, of the median variance of all tensors against a tensor's own S - 1."""
FAMILY_LEVEL = 0.9
"""Of all intervals together: with this probability every one of them covers its exponent. A check fails when one lies
outside, and a right table has as many chances of that as there are tensors."""


@dataclass(frozen=True)
class Interval:
    """A measured exponent.

    Attributes:
        value: mean over seeds of the slope of log2 RMS against log2 width.
        low, high: its own interval, at `OWN_LEVEL`.
        lowest, highest: the wider one that holds together with all others, at `FAMILY_LEVEL`.
    """

    value: float
    low: float
    high: float
    lowest: float
    highest: float

    @property
    def numbers(self) -> tuple[float, float, float, float, float]:
        return self.value, self.low, self.high, self.lowest, self.highest


def seed_slopes(log_sizes: Sequence[float], log_rms: Array) -> Array:
    """Least-squares slope per seed.

    Args:
        log_sizes: log2 of the widths.
        log_rms: log2 RMS, widths x seeds.
    """
    x = np.asarray(log_sizes, dtype=np.float64)
    x = x - x.mean()
    slopes: Array = x @ log_rms / (x @ x)
    return slopes


def intervals(slopes: Sequence[Array], *, family: int) -> list[Interval]:
    """The intervals of every tensor, from its slopes per seed.

    Args:
        slopes: per tensor, one slope per seed, of two seeds at least.
        family: how many intervals must hold together.
    """
    if not slopes:
        return []
    variances = [float(np.var(s, ddof=1)) for s in slopes]
    typical = float(np.median(variances))
    made = []
    for slope, own in zip(slopes, variances, strict=True):
        seeds = len(slope)
        freedom = seeds - 1 + PRIOR_FREEDOM
        error, mean = math.sqrt((PRIOR_FREEDOM * typical + (seeds - 1) * own) / freedom / seeds), float(np.mean(slope))
        alone = t_quantile(1 - (1 - OWN_LEVEL) / 2, freedom) * error
        together = max(alone, t_quantile(1 - (1 - FAMILY_LEVEL) / 2 / family, freedom) * error)
        made.append(Interval(mean, mean - alone, mean + alone, mean - together, mean + together))
    return made


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t, above the median, by bisection of its exact distribution function.

    >>> round(t_quantile(0.975, 10), 3)
    2.228
    """
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: a finite sum for whole degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    inner = math.sin(angle) * total
    central = 2 / math.pi * (angle + inner) if odd else inner
    return (1 + central) / 2
