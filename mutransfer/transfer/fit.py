"""Every size's optimum of one parameterization, as measured and in every resampled sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mutransfer.transfer.bootstrap import Noise
from mutransfer.transfer.curves import Curve
from mutransfer.transfer.valley import Array, curvatures, interpolate, positions


@dataclass(frozen=True)
class Bottoms:
    """Sizes lie on the last axis of every array; resampled sweeps on the first one, where there are any.

    Attributes:
        position: log2 of the best value.
        curvature: relative loss lost by missing the measured best value by one octave.
        loss: interpolated there.
        regret: at the largest size, relative loss at the smallest size's position over that at its own, minus 1, which
            noise may take below 0; nan outside the tried values.
    """

    position: Array
    curvature: Array
    loss: Array
    regret: Array


@dataclass(frozen=True)
class Fit:
    curves: Sequence[Curve]
    measured: Bottoms
    resampled: Bottoms | None

    @property
    def sizes(self) -> Array:
        return np.log2([curve.size for curve in self.curves])

    def slope(self, values: Array) -> Array:
        """Of `values` (..., sizes) against log2 size: per doubling."""
        centred = self.sizes - self.sizes.mean()
        slopes: Array = values @ centred / (centred @ centred)
        return slopes


def fit(curves: Sequence[Curve], level: float, draws: int, rng: np.random.Generator) -> Fit:
    """What is resampled is the noise and where the grid lies: every draw reads all curves as far beside their points.

    No valley is quite the polynomial that is fitted to it, and how far its optimum is off depends on how the grid lies
    around it. Where every size's optimum lies alike these errors are alike and are no drift; where the optimum moves
    they differ, up to a quarter of a step of the grid beside a wall. Intervals of the noise alone, around windows that
    stay, were measured to hold a planted drift beside a wall in 3 to 49 % of sweeps.
    """
    means = [curve.mean[curve.usable] for curve in curves]
    best = positions([curve.valley for curve in curves], means)
    measured = _bottoms(curves, means, best)
    noise = Noise.pooled(curves, level)
    if noise is None:
        return Fit(curves, measured, None)
    beside = rng.uniform(-0.5, 0.5, draws) * max(curve.spacing for curve in curves)
    found = _bottoms(curves, [noise.around(curve, beside, rng) for curve in curves], [at - beside for at in best])
    ends = np.array([curve.x[[0, -1]] for curve in curves]).T
    return Fit(curves, measured, replace(found, position=np.clip(found.position + beside[:, None], *ends)))


def _bottoms(curves: Sequence[Curve], losses: Sequence[Array], measured: Sequence[Array]) -> Bottoms:
    """Of these losses; the curvature is read at the measured optima, in their own octaves."""
    valleys = [curve.valley for curve in curves]
    position = np.stack(found := positions(valleys, losses), axis=-1)
    each = zip(valleys, losses, found, strict=True)
    loss = np.stack([interpolate(valley.x, y, at) for valley, y, at in each], axis=-1)
    curvature = np.stack(curvatures(valleys, losses, measured), axis=-1) / loss
    there = _loss_at(curves[-1], losses[-1], position[..., 0])
    return Bottoms(position, curvature, loss, there / loss[..., -1] - 1)


def _loss_at(curve: Curve, y: Array, at: Array) -> Array:
    """Interpolated where trials converged on both sides, inf towards a diverged one, nan outside the tried values."""
    x = curve.valley.x
    inside = (at >= x[0]) & (at <= x[-1])
    tried = (at >= curve.x[0]) & (at <= curve.x[-1])
    return np.where(inside, interpolate(x, y, np.clip(at, x[0], x[-1])), np.where(tried, np.inf, np.nan))
