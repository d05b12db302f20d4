"""Every size's optimum of one parameterization, as measured and in every resampled sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mutransfer.transfer.bootstrap import Noise
from mutransfer.transfer.curves import Curve
from mutransfer.transfer.valley import Array, bottoms, interpolate


@dataclass(frozen=True)
class Bottoms:
    """Sizes lie on the last axis of every array; resampled sweeps on the first one, where there are any.

    Attributes:
        position: log2 of the best value.
        curvature: relative loss lost by missing it by one octave.
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
    measured = _bottoms(curves, [curve.mean[curve.usable] for curve in curves])
    noise = Noise.pooled(curves, level)
    if noise is None:
        return Fit(curves, measured, None)
    return Fit(curves, measured, _bottoms(curves, [noise.around(curve, draws, rng) for curve in curves]))


def _bottoms(curves: Sequence[Curve], losses: Sequence[Array]) -> Bottoms:
    found = bottoms([curve.valley for curve in curves], losses)
    position = np.stack([at for at, _ in found], axis=-1)
    each = zip(curves, losses, found, strict=True)
    loss = np.stack([interpolate(curve.valley.x, y, at) for curve, y, (at, _) in each], axis=-1)
    curvature = np.stack([bend for _, bend in found], axis=-1) / loss
    there = _loss_at(curves[-1], losses[-1], position[..., 0])
    return Bottoms(position, curvature, loss, there / loss[..., -1] - 1)


def _loss_at(curve: Curve, y: Array, at: Array) -> Array:
    """Interpolated where trials converged on both sides, inf towards a diverged one, nan outside the tried values."""
    x = curve.valley.x
    inside = (at >= x[0]) & (at <= x[-1])
    tried = (at >= curve.x[0]) & (at <= curve.x[-1])
    return np.where(inside, interpolate(x, y, np.clip(at, x[0], x[-1])), np.where(tried, np.inf, np.nan))
