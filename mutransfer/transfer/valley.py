"""A valley of losses over log2 of a hyperparameter: where its bottom is, how sharp it is, what a point between costs.

Everything takes the losses of many resampled curves at once: `y` has shape (..., points), `x` is sorted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

REACH = 2.0
"""Octaves on each side of the lowest point that the fit may use."""
WALL = 1.5
"""A point that lies this many times higher than a parabola through the valley's other points is beyond the valley."""


@dataclass(frozen=True)
class Local:
    """Least squares around a lowest point, as rows: a coefficient is then one product with the losses.

    Of one curve, or of many along the first axes of every array.

    Attributes:
        slope, quadratic: of a parabola through the window.
        cubic: of a cubic through it; zeros where fewer than four points allow none.
        weight: of the cubic coefficient: one over its variance in units of the noise.
        cube: what the parabola's (slope, quadratic) read on a pure cube.
    """

    slope: Array
    quadratic: Array
    cubic: Array
    weight: Array
    cube: Array

    def parabola(self, y: Array, cubic: Array) -> tuple[Array, Array]:
        """Slope and quadratic coefficient around the lowest point, beside this cubic."""
        slope = _dot(self.slope, y) - cubic * self.cube[..., 0]
        return slope, _dot(self.quadratic, y) - cubic * self.cube[..., 1]


@dataclass(frozen=True)
class Valley:
    """One curve's values and what its fit uses.

    Attributes:
        lowest: index of the value that the fit is centred on.
        used: the values that it uses.
    """

    x: Array
    lowest: int
    used: NDArray[np.bool_]

    @classmethod
    def over(cls, x: Array, mean: Array) -> Valley:
        """All losses are finite, and there are at least three."""
        return cls(x, int(centres(x, mean)), windows(x, mean))


def centres(x: Array, y: Array) -> NDArray[np.intp]:
    """The lowest point of every curve that has a neighbour on each side."""
    inner: NDArray[np.intp] = np.clip(y.argmin(-1), 1, len(x) - 2)
    return inner


def positions(valleys: Sequence[Valley], losses: Sequence[Array]) -> list[Array]:
    """Each size's optimum, for every resampled curve.

    A local quadratic with one cubic term for all sizes: real valleys are steeper on the side of divergence, and a
    plain parabola's optimum is then off by an amount that depends on where the grid happens to lie, which looks like
    drift. A cubic term per size would cost most of the precision; a common one costs little.
    A fit that bends the wrong way says nothing about the optimum: the lowest measured point stands.
    """
    fits = [_around(v.x, centres(v.x, y), windows(v.x, y)) for v, y in zip(valleys, losses, strict=True)]
    cubic = _cubic(fits, losses)
    return [_position(v.x, fit, y, cubic) for v, fit, y in zip(valleys, fits, losses, strict=True)]


def curvatures(valleys: Sequence[Valley], losses: Sequence[Array], at: Sequence[Array]) -> list[Array]:
    """Half the second derivative of each size's curve at the measured optimum, for every resampled curve.

    Place and window are the measured curve's: the curvature is then linear in the losses, and what is resampled
    scatters around what was measured. In a flat valley, windows that follow the noise would see other slopes than the
    measured one.
    """
    fits = [_fit(v.x, v.lowest, v.used) for v in valleys]
    cubic = _cubic(fits, losses)
    each = zip(valleys, fits, losses, at, strict=True)
    return [fit.parabola(y, cubic)[1] + 3 * cubic * (there - v.x[v.lowest]) for v, fit, y, there in each]


def _cubic(fits: Sequence[Local], losses: Sequence[Array]) -> Array:
    """The cubic coefficient that all sizes share: their own ones, weighted by precision."""
    cubics = [_dot(fit.cubic, y) for fit, y in zip(fits, losses, strict=True)]
    weights = [np.broadcast_to(fit.weight, c.shape) for fit, c in zip(fits, cubics, strict=True)]
    total = np.sum(weights, axis=0)
    weighted = np.sum([w * c for w, c in zip(weights, cubics, strict=True)], axis=0)
    mean: Array = np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0)
    return mean


def _position(x: Array, fit: Local, y: Array, cubic: Array) -> Array:
    centre = centres(x, y)
    slope, quadratic = fit.parabola(y, cubic)
    root = quadratic + np.sqrt(np.maximum(quadratic**2 - 3 * slope * cubic, 0))
    bends = (quadratic**2 > 3 * slope * cubic) & (root > 0)
    step = np.where(bends, -slope / np.where(bends, root, 1.0), x[y.argmin(-1)] - x[centre])
    bracketed: Array = np.clip(x[centre] + step, x[centre - 1], x[centre + 1])  # by its neighbours
    return bracketed


def _dot(rows: Array, y: Array) -> Array:
    product: Array = (rows * y).sum(-1)
    return product


def windows(x: Array, y: Array) -> NDArray[np.bool_]:
    """The points that each curve's fit uses: near its lowest one and not up the wall, and at least three.

    Towards divergence a loss follows no polynomial. A wall stands on one side only, so a point must be too high for
    the other side as well as for the bottom: a flat valley's neighbours alone, a little above the lowest point by
    luck, would make walls of both its slopes.
    """
    lowest, centre = y.argmin(-1), centres(x, y)
    away = np.abs(x - x[lowest][..., None])
    bend = np.divide(y - y.min(-1, keepdims=True), away**2, out=np.zeros_like(y), where=away > 0)
    beside = np.abs(np.arange(len(x)) - centre[..., None]) <= 1
    sides = [(away <= REACH + 1e-9) & side for side in (x < x[lowest][..., None], x > x[lowest][..., None])]
    gentle = np.minimum(*(np.where(side, bend, 0.0).max(-1) for side in sides))
    line = WALL * np.maximum(np.where(beside, bend, 0.0).max(-1), gentle)
    near = np.abs(x - x[centre][..., None]) <= REACH + 1e-9
    used: NDArray[np.bool_] = (near & (bend <= line[..., None])) | beside
    return used


def _around(x: Array, centre: NDArray[np.intp], used: NDArray[np.bool_]) -> Local:
    """The fit of every curve; curves mostly share a few windows."""
    keys = np.concatenate([centre[..., None], used], axis=-1).reshape(-1, len(x) + 1)
    distinct, which = np.unique(keys, axis=0, return_inverse=True)
    fits = [_fit(x, int(key[0]), key[1:].astype(bool)) for key in distinct]
    each = which.reshape(centre.shape)
    names = ("slope", "quadratic", "cubic", "weight", "cube")
    return Local(*(np.stack([getattr(fit, name) for fit in fits])[each] for name in names))


def _fit(x: Array, centre: int, used: NDArray[np.bool_]) -> Local:
    return _rows(tuple(np.round(x - x[centre], 9).tolist()), tuple(used.tolist()))


@functools.lru_cache(maxsize=1024)
def _rows(offsets: tuple[float, ...], used: tuple[bool, ...]) -> Local:
    """Sweeps mostly repeat one grid at every size, and so these."""
    near, chosen = np.array(offsets)[list(used)], list(used)
    parabola, cubic = np.zeros((2, len(offsets))), np.zeros(len(offsets))
    parabola[:, chosen] = np.linalg.pinv(np.vander(near, 3, increasing=True))[1:]
    if len(near) > 3:
        cubic[chosen] = np.linalg.pinv(np.vander(near, 4, increasing=True))[3]
    cube = parabola @ np.array(offsets) ** 3
    weight = np.array(1 / float(cubic @ cubic) if cubic.any() else 0.0)
    return Local(parabola[0], parabola[1], cubic, weight, cube)


def interpolate(x: Array, y: Array, at: Array) -> Array:
    """The measured losses, interpolated at `at` (shape of y without its last axis) inside the grid.

    Each interval's chord, bent by the mean second difference of its two ends, or by twice the smaller one where they
    differ wildly: beside a cliff a cubic would swing below every measured loss. Exact for a parabola.
    """
    left = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    start, rise, bend = (_take(part, left) for part in _pieces(x, y))
    inner: Array = start + rise * (at - x[left]) + bend * (at - x[left]) * (at - x[left + 1])
    return inner


def _pieces(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Per interval: the loss at its start, its chord's slope and its bend."""
    rise = np.diff(y) / np.diff(x)
    bends = np.diff(rise) / (x[2:] - x[:-2])
    before = np.concatenate([bends[..., :1], bends], axis=-1)
    after = np.concatenate([bends, bends[..., -1:]], axis=-1)
    mean, smaller = (before + after) / 2, 2 * np.minimum(np.abs(before), np.abs(after))
    bend = np.where(before * after > 0, np.sign(mean) * np.minimum(np.abs(mean), smaller), 0.0)
    return y[..., :-1], rise, bend


def _take(values: Array, index: NDArray[np.intp]) -> Array:
    taken: Array = np.take_along_axis(values, index[..., None], -1)[..., 0]
    return taken
