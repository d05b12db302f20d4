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
WALL = 6.0
"""A point this many times higher above the bottom than both neighbours is beyond the valley (a parabola: 4 times)."""


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
    """One curve's values and the fits around each of them that may turn out lowest."""

    x: Array
    local: tuple[Local, ...]

    @classmethod
    def over(cls, x: Array, mean: Array) -> Valley:
        """For curves whose points scatter around `mean`; all losses are finite, and there are at least three."""
        inside = _inside(mean)
        return cls(x, tuple(_local(x, inside, centre) for centre in range(len(x))))

    def window(self, centre: int) -> NDArray[np.bool_]:
        """The points that the fit around this lowest point uses."""
        used: NDArray[np.bool_] = self.local[centre].slope != 0
        used |= self.local[centre].quadratic != 0
        return used

    def rows(self, centre: NDArray[np.intp], name: str) -> Array:
        """That part of the fit around each curve's lowest point."""
        every: Array = np.array([getattr(local, name) for local in self.local])[centre]
        return every


def bottoms(valleys: Sequence[Valley], losses: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Each size's optimum and half the second derivative there, for every resampled curve.

    A local quadratic with one cubic term for all sizes: real valleys are steeper on the side of divergence, and a
    plain parabola's optimum is then off by an amount that depends on where the grid happens to lie, which looks like
    drift. A cubic term per size would cost most of the precision; a common one costs little.
    A fit that bends the wrong way says nothing about the optimum: the lowest measured point stands.
    """
    centres = [np.clip(y.argmin(-1), 1, len(v.x) - 2) for v, y in zip(valleys, losses, strict=True)]
    weights = [v.rows(c, "weight") for v, c in zip(valleys, centres, strict=True)]
    cubics = [_dot(v.rows(c, "cubic"), y) for v, c, y in zip(valleys, centres, losses, strict=True)]
    total = np.sum(weights, axis=0)
    weighted = np.sum([w * c for w, c in zip(weights, cubics, strict=True)], axis=0)
    cubic = np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0)
    return [_bottom(v, c, y, cubic) for v, c, y in zip(valleys, centres, losses, strict=True)]


def _bottom(valley: Valley, centre: NDArray[np.intp], y: Array, cubic: Array) -> tuple[Array, Array]:
    x, cube = valley.x, valley.rows(centre, "cube")
    slope = _dot(valley.rows(centre, "slope"), y) - cubic * cube[..., 0]
    quadratic = _dot(valley.rows(centre, "quadratic"), y) - cubic * cube[..., 1]
    root = quadratic + np.sqrt(np.maximum(quadratic**2 - 3 * slope * cubic, 0))
    bends = (quadratic**2 > 3 * slope * cubic) & (root > 0)
    step = np.where(bends, -slope / np.where(bends, root, 1.0), x[y.argmin(-1)] - x[centre])
    position = np.clip(x[centre] + step, x[centre - 1], x[centre + 1])  # its neighbours bracket the optimum
    return position, quadratic + 3 * cubic * (position - x[centre])


def _dot(rows: Array, y: Array) -> Array:
    product: Array = (rows * y).sum(-1)
    return product


def _inside(mean: Array) -> NDArray[np.bool_]:
    """The points that are not up the wall: towards divergence a loss follows no polynomial."""
    lowest = int(np.clip(mean.argmin(), 1, len(mean) - 2))
    nearby = mean[lowest - 1 : lowest + 2]
    inside: NDArray[np.bool_] = mean <= mean.min() + WALL * (nearby.max() - mean.min())
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
