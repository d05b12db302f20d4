"""The residual bootstrap: resample the noise around every mean curve, and where the grid lies, refit, and read off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from mutransfer.transfer.curves import Curve, Residuals, residuals
from mutransfer.transfer.valley import Array, interpolate

PRIOR = 2.0
"""How many residuals the common noise level counts for, beside those at one distance or size."""
BETWEEN = 7 / 96
"""What share of its noise's variance a curve shows already by being read between its points: with weights 1-t and t,
t uniform over half a step, that of the values is 2/3 and that of their mean 19/32."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval at the report's level; None where the sweep cannot say, and then why.

    An infinite end (training diverges) is null in JSON.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def distance(self, other: Interval) -> float:
        """Between the two; 0 where they overlap or an end is not known."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return 0.0
        return max(other.low - self.high, self.low - other.high, 0.0)

    def to_json(self) -> dict[str, Any]:
        bounds = {name: _finite(getattr(self, name)) for name in ("value", "low", "high")}
        return bounds | ({"reason": self.reason} if self.reason else {})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def interval(value: float, draws: Array | None, level: float, reason: str | None = None) -> Interval:
    """The central interval of the draws, stretched to the value; without draws only the value, and why.

    What is no smooth function of the losses, such as a regret that cannot be below 0, is resampled around another
    number than was measured; an interval without its own estimate would claim that the measurement is impossible.
    """
    if draws is None:
        return Interval(float(value), reason=reason)
    known = draws[~np.isnan(draws)]
    if len(known) < len(draws) / 2:
        return Interval(float(value), reason="the resampled curves mostly have no such number")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(float(value), min(float(low), float(value)), max(float(high), float(value)), reason)


@dataclass(frozen=True)
class Noise:
    """Residuals of all sizes as one standard shape, with a level per distance from the optimum and one per size.

    Seeds disagree more towards divergence, and less in large models. One pool would let the loudest trials widen every
    interval (measured with noise that grows fivefold in two octaves: twice too wide, 99.5 % coverage), so each
    distance and each size keeps its own level, drawn towards the common one.
    """

    shape: Array
    level: dict[int, float]
    size: dict[float, float]

    @classmethod
    def pooled(cls, curves: Sequence[Curve], level: float) -> Noise | None:
        """Widened for intervals at `level`, since few residuals know their own size badly.

        None where no seed was repeated: a single seed cannot show the noise.
        """
        parts = {curve.size: residuals(curve) for curve in curves}
        parts = {size: part for size, part in parts.items() if part.freedom > 0 and len(part.values)}
        return cls._from(parts, level) if parts else None

    @classmethod
    def _from(cls, parts: Mapping[float, Residuals], at: float) -> Noise:
        values = np.concatenate([part.values for part in parts.values()])
        octaves = np.concatenate([part.octaves for part in parts.values()])
        near = max(2, int(np.abs(octaves).min()))
        common = float(np.mean(values[np.abs(octaves) <= near] ** 2))
        level = {int(o): _shrunk(values[octaves == o], common) for o in np.unique(octaves)}
        scaled = {size: _scaled(part, level) for size, part in parts.items()}
        own = {size: _shrunk(values, 1.0, parts[size].freedom) for size, values in scaled.items()}
        shape = np.concatenate([values / own[size] for size, values in scaled.items()])
        size = math.sqrt(float(np.mean(shape**2))) or 1.0
        return cls(shape / size * student(at, sum(part.freedom for part in parts.values())), level, own)

    def around(self, curve: Curve, beside: Array, rng: np.random.Generator) -> Array:
        """(draws, usable values): the mean curve with fresh noise, averaged over as many seeds as were run.

        Args:
            beside: (draws,), octaves to the right of its points at which the curve is read.
        """
        draws = len(beside)
        counts = curve.counts()
        most = int(counts.max())
        fresh = rng.choice(self.shape, (most, draws, len(counts)))
        fresh *= (np.arange(most)[:, None] < counts)[:, None, :]
        x = curve.x[curve.usable]
        distance = np.rint(x - x[curve.mean[curve.usable].argmin()]).astype(int)
        scale = self.size.get(curve.size, 1.0) * np.array([self._at(int(d)) for d in distance])
        mean = curve.mean[curve.usable]
        moved = interpolate(x, np.broadcast_to(mean, (draws, len(x), len(x))), x + beside[:, None])
        noisy: Array = moved + fresh.sum(0) / counts * scale * math.sqrt(1 - BETWEEN)
        return noisy

    def _at(self, octave: int) -> float:
        """The level at this distance, or at the nearest one that was seen."""
        return self.level[min(self.level, key=lambda seen: abs(seen - octave))]


def student(level: float, freedom: int) -> float:
    """Student's quantile over the normal one for a central interval: two terms of the Cornish-Fisher expansion.

    >>> round(student(0.9, 16), 3)  # 1.746 / 1.645
    1.061
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    return 1 + (z**2 + 1) / (4 * freedom) + (5 * z**4 + 16 * z**2 + 3) / (96 * freedom**2)


def _scaled(part: Residuals, level: Mapping[int, float]) -> Array:
    """In units of the level at each distance; noiseless sweeps have none."""
    scales = np.array([level[int(octave)] for octave in part.octaves])
    scaled: Array = np.divide(part.values, scales, out=np.zeros_like(part.values), where=scales > 0)
    return scaled


def _shrunk(values: Array, common: float, weight: float | None = None) -> float:
    weight = len(values) / 2 if weight is None else weight
    return math.sqrt((weight * float(np.mean(values**2)) + PRIOR * common) / (weight + PRIOR))
