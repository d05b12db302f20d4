"""One size's trials as a table of seeds by values, its mean curve, and the noise that is left around it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mutransfer.transfer.points import MIN_VALUES, Point
from mutransfer.transfer.valley import Array, Valley

Bound = Literal["", "<=", ">="]
CLIFF = 0.5
"""Octaves: an optimum next to divergence counts as bracketed when the gap is no wider."""
COARSE = 1.0
"""Octaves: between values that lie further apart, the fit's own error counts for more than seeds."""


@dataclass(frozen=True)
class Curve:
    """Losses over log2 of the value at one size.

    Attributes:
        values: every value tried, sorted; `x` is their log2.
        seeds: sorted.
        losses: (seed, value); nan where not run, inf where diverged.
        paired: whether the seeds can be compared across values.
        mean: per value, inf where any seed diverged; seeds that miss some values are compared within themselves.
    """

    size: float
    values: tuple[float, ...]
    x: Array
    seeds: tuple[int, ...]
    losses: Array
    paired: bool
    mean: Array

    @classmethod
    def of(cls, size: float, points: Iterable[Point]) -> Curve:
        points = list(points)
        values = sorted({point.lr for point in points})
        seeds = sorted({point.seed for point in points})
        losses = np.full((len(seeds), len(values)), np.nan)
        for point in points:
            losses[seeds.index(point.seed), values.index(point.lr)] = point.loss
        finite = ~np.isinf(losses).any(0)
        paired = _connected(np.isfinite(losses[:, finite]))
        mean = np.full(len(values), math.inf)
        mean[finite] = _mean(losses[:, finite], paired)
        return cls(size, tuple(values), np.log2(values), tuple(seeds), losses, paired, mean)

    @functools.cached_property
    def usable(self) -> NDArray[np.bool_]:
        """The values at which no seed diverged."""
        return np.isfinite(self.mean)

    @functools.cached_property
    def valley(self) -> Valley:
        return Valley.over(self.x[self.usable], self.mean[self.usable])

    @property
    def lowest(self) -> int:
        """Index into `x` of the lowest mean."""
        return int(self.mean.argmin())

    @property
    def spacing(self) -> float:
        return float(np.median(np.diff(self.x))) if len(self.x) > 1 else 1.0

    @property
    def interior(self) -> bool:
        return not self.missing()

    @property
    def bound(self) -> Bound:
        """Where the lowest mean lies at an end of the grid, the optimum is only known to lie there or beyond."""
        if self.lowest == 0:
            return "<="
        return ">=" if self.lowest == len(self.x) - 1 else ""

    def missing(self) -> tuple[float, ...]:
        """The values to add so that the optimum lies between tried ones; empty when it does."""
        at, step = self.lowest, self.spacing
        if self.bound == "<=":
            return powers(self.x[0] - 2 * step, self.x[0] - step)
        if self.bound == ">=":
            return powers(self.x[-1] + step, self.x[-1] + 2 * step)
        gap = self.x[at + 1] - self.x[at]
        if np.isinf(self.mean[at + 1]) and gap > CLIFF + 1e-9:
            return powers(self.x[at] + gap / 2)
        return ()

    def between(self) -> tuple[float, ...]:
        """The values in the middle of the gaps beside the best one, where these are coarse; else empty."""
        beside = self.x[max(self.lowest - 1, 0) : self.lowest + 2]
        return powers(*(a + (b - a) / 2 for a, b in pairwise(beside.tolist()) if b - a > COARSE + 1e-9))

    def more(self) -> tuple[float, ...]:
        """The values to add where too few converged: one beyond each end where none diverged; else as many as are
        missing, the first in the middle of a wide gap below divergence, the others below all."""
        step = self.spacing
        if self.usable.all():
            return powers(self.x[0] - step, self.x[-1] + step)
        inside = self.missing() if self.usable.any() and not self.bound else ()
        below = MIN_VALUES - int(self.usable.sum()) - len(inside)
        return (*powers(*(float(self.x[0] - step * k) for k in range(below, 0, -1))), *inside)

    def counts(self) -> Array:
        """Trials behind each usable mean."""
        n: Array = np.isfinite(self.losses[:, self.usable]).sum(0).astype(float)
        return n


def powers(*log2: float) -> tuple[float, ...]:
    """Values to try: exact powers of two, and four digits between them."""
    return tuple(2.0 ** round(at) if abs(at - round(at)) < 1e-9 else float(f"{2.0**at:.4g}") for at in log2)


@dataclass(frozen=True)
class Residuals:
    """What is left of each trial after its value's mean and its seed's effect, at its true variance.

    Attributes:
        values: flat.
        octaves: how far each lies from its curve's lowest point, rounded.
        freedom: degrees of freedom of the near ones.
    """

    values: Array
    octaves: NDArray[np.intp]
    freedom: int


def residuals(curve: Curve) -> Residuals:
    """Seed effects come from the fitted window only: near divergence the noise is many times larger."""
    y = curve.losses[:, curve.usable]
    x = curve.x[curve.usable]
    lowest = int(curve.mean[curve.usable].argmin())
    window = curve.valley.used
    seed, freedom, inflation = _seed_effects(y[:, window], curve.paired)
    left = y - seed[:, None]
    left = left - np.nanmean(left, axis=0)
    seen = np.maximum(np.isfinite(left).sum(0), 1)
    far = np.sqrt(seen / np.maximum(seen - 1, 1))
    left = left * np.where(window, inflation, far)
    octaves = np.broadcast_to(np.rint(x - x[lowest]).astype(np.intp), left.shape)
    known = np.isfinite(left) & (seen > 1)
    return Residuals(left[known], octaves[known], freedom)


def seed_effects(curve: Curve) -> Array:
    """How far each seed lies from the mean of all, relative to the loss; empty where that is part of the residuals."""
    if not curve.paired:
        return np.zeros(0)
    y = curve.losses[:, curve.usable]
    effects = _seed_effects(y, curve.paired)[0]
    relative: Array = effects[np.isfinite(effects)] / np.nanmean(y)
    return relative


def _seed_effects(y: Array, paired: bool) -> tuple[Array, int, float]:
    """Each seed's offset (nan where it was not run here), degrees of freedom, and the factor to true variance."""
    cells = int(np.isfinite(y).sum())
    columns = y.shape[1]
    if not paired or not _connected(np.isfinite(y)):
        freedom = cells - columns
        return np.zeros(len(y)), freedom, math.sqrt(cells / freedom) if freedom else 1.0
    present = np.isfinite(y).any(1)
    effects = np.full(len(y), np.nan)
    effects[present] = _two_way(y[present])[0]
    freedom = cells - int(present.sum()) - columns + 1
    return effects, freedom, math.sqrt(cells / freedom) if freedom else 1.0


def _mean(y: Array, paired: bool) -> Array:
    if paired and np.isnan(y).any():
        seed, value = _two_way(y)
        both: Array = value + seed.mean()
        return both
    plain: Array = np.nanmean(y, axis=0) if y.size else np.zeros(0)
    return plain


def _two_way(y: Array) -> tuple[Array, Array]:
    """Least squares of seed effect + value effect; the seed effects have mean zero."""
    rows, columns = np.nonzero(np.isfinite(y))
    design = np.zeros((len(rows), sum(y.shape)))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), y.shape[0] + columns] = 1
    effects = np.linalg.lstsq(design, y[rows, columns], rcond=None)[0]
    seed, value = effects[: len(y)], effects[len(y) :]
    return seed - seed.mean(), value + seed.mean()


def _connected(known: NDArray[np.bool_]) -> bool:
    """Whether every two values can be compared through seeds that saw both."""
    if not known.size:
        return True
    if known.all():
        return True
    reached = known[:, 0]
    for _ in known:
        values = known[reached].any(0)
        reached = np.asarray(known[:, values].any(1))
    return bool(known[reached].any(0).all())


def curves_of(points: Sequence[Point]) -> list[Curve]:
    """One curve per size, smallest first."""
    return [Curve.of(size, [p for p in points if p.size == size]) for size in sorted({p.size for p in points})]
