"""The loss at infinite size: `limit + a * size**-b`, fitted to the best loss of every size."""

from __future__ import annotations

import numpy as np

from mutransfer.transfer.valley import Array

MIN_SIZES = 6
"""With fewer sizes three free numbers fit anything."""
EXPONENTS = np.linspace(0.1, 2.0, 39)


def limit(log2_sizes: Array, losses: Array) -> Array:
    """The fitted limit of each row of `losses` (..., sizes): least squares at every exponent, the best exponent's."""
    fits = [_at_exponent(log2_sizes, losses, b) for b in EXPONENTS]
    errors = np.stack([error for error, _ in fits])
    limits = np.stack([value for _, value in fits])
    best: Array = np.take_along_axis(limits, errors.argmin(0)[None], 0)[0]
    return best


def _at_exponent(log2_sizes: Array, losses: Array, exponent: float) -> tuple[Array, Array]:
    design = np.stack([np.ones_like(log2_sizes), 2.0 ** (-exponent * (log2_sizes - log2_sizes[0]))], axis=1)
    solution = losses @ np.linalg.pinv(design).T
    error: Array = ((solution @ design.T - losses) ** 2).sum(-1)
    return error, solution[..., 0]
