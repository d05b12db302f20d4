"""A valley of losses over log2 of a hyperparameter: where its bottom is, how sharp it is, what a point between costs.

Everything takes the losses of many resampled curves at once: `y` has shape (..., points), `x` is sorted.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

REACH = 2.0
"""Octaves on each side of the lowest point that the fit may use."""
WALL = 8.0
"""A point this many times higher above the bottom than both neighbours is beyond the valley (a parabola: 4 times)."""


@dataclass(frozen=True)
class Valley:
    """Least squares around every possible lowest point, as matrices: a fit is then one product.

    The fit is a local quadratic with a cubic term wherever four points allow: real valleys are steeper on the side
    of divergence, and a parabola's optimum is then off by an amount that depends on where the grid happens to lie,
    which looks like drift (with five seeds it covers a planted drift in 16 to 80 % of sweeps instead of 90 %).
    """

    x: Array
    coefficients: Array  # (lowest point, (slope, quadratic, cubic), point)

    @classmethod
    def over(cls, x: Array, mean: Array) -> Valley:
        """For curves whose points scatter around `mean`; all losses are finite, and there are at least three."""
        inside = _inside(mean)
        rows = [_local(x, inside, centre) for centre in range(len(x))]
        return cls(x, np.stack(rows))

    def window(self, centre: int) -> NDArray[np.bool_]:
        """The points that the fit around this lowest point uses."""
        used: NDArray[np.bool_] = np.any(self.coefficients[centre] != 0, axis=0)
        return used

    def bottom(self, y: Array) -> tuple[Array, Array]:
        """The optimum's position and half the second derivative there, for each curve.

        A fit that bends the wrong way says nothing about the optimum: the lowest measured point stands.
        """
        centre = np.clip(y.argmin(-1), 1, len(self.x) - 2)
        slope, quadratic, cubic = np.moveaxis(np.einsum("...kl,...l->...k", self.coefficients[centre], y), -1, 0)
        discriminant = quadratic**2 - 3 * slope * cubic
        bends = (discriminant > 0) & (quadratic + np.sqrt(np.maximum(discriminant, 0)) > 0)
        root = np.where(bends, quadratic + np.sqrt(np.maximum(discriminant, 0)), 1.0)
        step = np.where(bends, -slope / root, self.x[y.argmin(-1)] - self.x[centre])
        low, high = self.x[centre - 1], self.x[centre + 1]  # the lowest point's neighbours bracket the optimum
        position = np.clip(self.x[centre] + step, low, high)
        return position, quadratic + 3 * cubic * (position - self.x[centre])


def _inside(mean: Array) -> NDArray[np.bool_]:
    """The points that are not up the wall: towards divergence a loss follows no polynomial."""
    lowest = int(np.clip(mean.argmin(), 1, len(mean) - 2))
    nearby = mean[lowest - 1 : lowest + 2]
    inside: NDArray[np.bool_] = mean <= mean.min() + WALL * (nearby.max() - mean.min())
    return inside


def _local(x: Array, inside: NDArray[np.bool_], centre: int) -> Array:
    """The rows that turn losses into (slope, quadratic, cubic) at `centre`."""
    used = inside & (np.abs(x - x[centre]) <= REACH + 1e-9)
    nearest = int(np.clip(centre, 1, len(x) - 2))
    used[nearest - 1 : nearest + 2] = True
    return _rows(tuple(np.round(x - x[centre], 9).tolist()), tuple(used.tolist()))


@functools.lru_cache(maxsize=1024)
def _rows(offsets: tuple[float, ...], used: tuple[bool, ...]) -> Array:
    """Sweeps mostly repeat one grid at every size, and so these."""
    degree = 3 if sum(used) > 3 else 2
    near = np.array(offsets)[list(used)]
    rows = np.zeros((3, len(offsets)))
    rows[:degree, used] = np.linalg.pinv(np.vander(near, degree + 1, increasing=True))[1:]
    rows.flags.writeable = False
    return rows


def interpolate(x: Array, y: Array, at: Array) -> Array:
    """The measured losses, interpolated at `at` (shape of y without its last axis) inside the grid.

    Each interval's chord, bent by the mean second difference of its two ends, or by twice the smaller one where they
    differ wildly: beside a cliff a cubic would swing below every measured loss. Exact for a parabola.
    """
    left = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    start, rise, bend = (_take(part, left) for part in _pieces(x, y))
    inner: Array = start + rise * (at - x[left]) + bend * (at - x[left]) * (at - x[left + 1])
    return inner


def lowest(x: Array, y: Array) -> Array:
    """The lowest interpolated loss of each curve, exactly: every piece is a parabola."""
    start, rise, bend = _pieces(x, y)
    length = np.diff(x)
    upward = bend > 0
    turn = np.where(upward, length / 2 - rise / (2 * np.where(upward, bend, 1.0)), 0.0)
    step = np.clip(turn, 0, length)
    bottoms = start + rise * step + bend * step * (step - length)
    lowest_loss: Array = np.minimum(bottoms.min(-1), y.min(-1))
    return lowest_loss


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
