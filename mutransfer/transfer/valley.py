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
    """Least squares around one possible lowest point, as rows: a coefficient is then one product with the losses.

    Attributes:
        slope, quadratic: of a parabola through the window.
        cubic: of a cubic through it; zeros where fewer than four points allow none.
        weight: of the cubic coefficient: one over its variance in units of the noise.
        cube: what the parabola's (slope, quadratic) read on a pure cube.
    """

    slope: Array
    quadratic: Array
    cubic: Array
    weight: float
    cube: tuple[float, float]


@dataclass(frozen=True)
class Valley:
    """One curve's values and the fits around each of them that may turn out lowest.

    Attributes:
        lowest: index of the value that the mean curve's fit is centred on.
    """

    x: Array
    local: tuple[Local, ...]
    lowest: int

    @classmethod
    def over(cls, x: Array, mean: Array) -> Valley:
        """For curves whose points scatter around `mean`; all losses are finite, and there are at least three."""
        inside = _inside(x, mean)
        local = tuple(_local(x, inside, centre) for centre in range(len(x)))
        return cls(x, local, int(np.clip(mean.argmin(), 1, len(x) - 2)))

    def window(self, centre: int) -> NDArray[np.bool_]:
        """The points that the fit around this lowest point uses."""
        used: NDArray[np.bool_] = self.local[centre].slope != 0
        used |= self.local[centre].quadratic != 0
        return used

    def rows(self, centre: NDArray[np.intp], name: str) -> Array:
        """That part of the fit around each curve's lowest point."""
        every: Array = np.array([getattr(local, name) for local in self.local])[centre]
        return every


def positions(valleys: Sequence[Valley], losses: Sequence[Array]) -> list[Array]:
    """Each size's optimum, for every resampled curve.

    A local quadratic with one cubic term for all sizes: real valleys are steeper on the side of divergence, and a
    plain parabola's optimum is then off by an amount that depends on where the grid happens to lie, which looks like
    drift. A cubic term per size would cost most of the precision; a common one costs little.
    A fit that bends the wrong way says nothing about the optimum: the lowest measured point stands.
    """
    centres = [np.clip(y.argmin(-1), 1, len(v.x) - 2) for v, y in zip(valleys, losses, strict=True)]
    cubic = _cubic(valleys, centres, losses)
    return [_position(v, c, y, cubic) for v, c, y in zip(valleys, centres, losses, strict=True)]


def curvatures(valleys: Sequence[Valley], losses: Sequence[Array], at: Sequence[Array]) -> list[Array]:
    """Half the second derivative of each size's curve at the measured optimum, for every resampled curve.

    Place and window are the measured curve's: the curvature is then linear in the losses, and what is resampled
    scatters around what was measured. In a flat valley, windows that follow the noise would see other slopes than the
    measured one.
    """
    centres = [np.full(y.shape[:-1], v.lowest) for v, y in zip(valleys, losses, strict=True)]
    cubic = _cubic(valleys, centres, losses)
    each = zip(valleys, centres, losses, at, strict=True)
    return [_parabola(v, c, y, cubic)[1] + 3 * cubic * (there - v.x[v.lowest]) for v, c, y, there in each]


def _cubic(valleys: Sequence[Valley], centres: Sequence[NDArray[np.intp]], losses: Sequence[Array]) -> Array:
    """The cubic coefficient that all sizes share: their own ones, weighted by precision."""
    weights = [v.rows(c, "weight") for v, c in zip(valleys, centres, strict=True)]
    cubics = [_dot(v.rows(c, "cubic"), y) for v, c, y in zip(valleys, centres, losses, strict=True)]
    total = np.sum(weights, axis=0)
    weighted = np.sum([w * c for w, c in zip(weights, cubics, strict=True)], axis=0)
    mean: Array = np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0)
    return mean


def _parabola(valley: Valley, centre: NDArray[np.intp], y: Array, cubic: Array) -> tuple[Array, Array]:
    """Slope and quadratic coefficient around the centre, beside this cubic."""
    cube = valley.rows(centre, "cube")
    slope = _dot(valley.rows(centre, "slope"), y) - cubic * cube[..., 0]
    return slope, _dot(valley.rows(centre, "quadratic"), y) - cubic * cube[..., 1]


def _position(valley: Valley, centre: NDArray[np.intp], y: Array, cubic: Array) -> Array:
    x = valley.x
    slope, quadratic = _parabola(valley, centre, y, cubic)
    root = quadratic + np.sqrt(np.maximum(quadratic**2 - 3 * slope * cubic, 0))
    bends = (quadratic**2 > 3 * slope * cubic) & (root > 0)
    step = np.where(bends, -slope / np.where(bends, root, 1.0), x[y.argmin(-1)] - x[centre])
    bracketed: Array = np.clip(x[centre] + step, x[centre - 1], x[centre + 1])  # by its neighbours
    return bracketed


def _dot(rows: Array, y: Array) -> Array:
    product: Array = (rows * y).sum(-1)
    return product


def _inside(x: Array, mean: Array) -> NDArray[np.bool_]:
    """The points that are not up the wall: towards divergence a loss follows no polynomial.

    A wall stands on one side only, so a point must be too high for the other side as well as for the bottom: a flat
    valley's neighbours alone, a little above the lowest point by luck, would make walls of both its slopes.
    """
    lowest = int(mean.argmin())
    away = np.abs(x - x[lowest])
    bend = np.divide(mean - mean[lowest], away**2, out=np.zeros_like(away), where=away > 0)
    centre = int(np.clip(lowest, 1, len(x) - 2))
    near = away <= REACH + 1e-9
    sides = (near & (x < x[lowest]), near & (x > x[lowest]))
    gentle = min(float(bend[side].max(initial=0.0)) for side in sides)
    inside: NDArray[np.bool_] = bend <= WALL * max(float(bend[centre - 1 : centre + 2].max()), gentle)
    return inside


def _local(x: Array, inside: NDArray[np.bool_], centre: int) -> Local:
    used = inside & (np.abs(x - x[centre]) <= REACH + 1e-9)
    nearest = int(np.clip(centre, 1, len(x) - 2))
    used[nearest - 1 : nearest + 2] = True
    return _fit(tuple(np.round(x - x[centre], 9).tolist()), tuple(used.tolist()))


@functools.lru_cache(maxsize=1024)
def _fit(offsets: tuple[float, ...], used: tuple[bool, ...]) -> Local:
    """Sweeps mostly repeat one grid at every size, and so these."""
    near, chosen = np.array(offsets)[list(used)], list(used)
    parabola, cubic = np.zeros((2, len(offsets))), np.zeros(len(offsets))
    parabola[:, chosen] = np.linalg.pinv(np.vander(near, 3, increasing=True))[1:]
    if len(near) > 3:
        cubic[chosen] = np.linalg.pinv(np.vander(near, 4, increasing=True))[3]
    cube = parabola @ np.array(offsets) ** 3
    weight = 1 / float(cubic @ cubic) if cubic.any() else 0.0
    return Local(parabola[0], parabola[1], cubic, weight, (float(cube[0]), float(cube[1])))


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
