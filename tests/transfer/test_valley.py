from __future__ import annotations

import numpy as np
import pytest

from mutransfer.transfer.valley import Valley, curvatures, interpolate, positions

X = np.arange(-9.0, -3.0)


def bottom(x, y):
    valley = [Valley.over(x, y)]
    (position,) = positions(valley, [y])
    return position, curvatures(valley, [y], [position])[0]


@pytest.mark.parametrize("best", [-6.0, -6.4, -7.2])
def test_a_parabola_and_a_cubic_are_found_exactly(best):
    for cubic in (0.0, 0.01):
        y = 2 + 0.1 * (X - best) ** 2 + cubic * (X - best) ** 3
        position, curvature = bottom(X, y)
        assert position == pytest.approx(best)
        assert curvature == pytest.approx(0.1)


def test_three_values_are_enough_for_a_parabola():
    x = np.array([-8.0, -6.0, -5.0])
    y = 2 + 0.1 * (x + 6.3) ** 2
    assert bottom(x, y)[0] == pytest.approx(-6.3)


def test_a_wall_of_divergence_does_not_enter_the_fit():
    y = 2 + 0.1 * (X + 6.2) ** 2
    y[-1] += 50
    assert bottom(X, y)[0] == pytest.approx(-6.2)


def test_the_optimum_lies_between_the_lowest_points_neighbours():
    y = np.array([3.0, 2.0, 2.0 - 1e-9, 2.0, 2.0, 2.0])
    position = bottom(X, y)[0]
    assert X[1] <= position <= X[3]


def test_interpolation_goes_through_every_measured_loss_and_is_exact_for_a_parabola():
    y = 2 + 0.1 * (X + 6.4) ** 2
    assert interpolate(X, y, X[2]) == pytest.approx(y[2])
    assert interpolate(X, y, np.array(-5.7)) == pytest.approx(2 + 0.1 * 0.7**2)


def test_interpolation_beside_a_cliff_does_not_swing_below_the_measured_losses():
    y = np.array([2.2, 2.1, 2.0, 2.1, 9.0, 80.0])
    inside = interpolate(X, np.broadcast_to(y, (50, 6)), np.linspace(X[2], X[3], 50))
    assert inside.min() > 1.97


FLAT = np.array([2.2601, 2.2185, 2.2148, 2.2175, 2.2536])
"""muP at width 64 in the demo: the bottom is flatter than its slopes by luck."""


def test_a_flat_bottom_makes_no_wall_of_both_slopes():
    x = X[:5]
    valley = Valley.over(x, FLAT)
    assert valley.used.all()
    _, curvature = bottom(x, FLAT)
    assert curvature == pytest.approx(np.polyfit(x, FLAT, 2)[0], rel=0.1)


def test_a_wall_on_one_side_of_a_flat_bottom_is_still_one():
    assert not Valley.over(X[:5], FLAT + np.array([0, 0, 0, 0, 0.2])).used[4]


def test_resampled_curvatures_scatter_around_the_measured_one():
    """Noise that moves the lowest point moves no bracket: half of the curvatures lie on either side."""
    x, rng = X[:5], np.random.default_rng(0)
    noisy = FLAT + rng.normal(0, 0.004, (1000, 5))
    assert len(np.unique(noisy.argmin(-1))) == 3
    position, measured = bottom(x, FLAT)
    (drawn,) = curvatures([Valley.over(x, FLAT)], [noisy], [position])
    assert 0.4 < np.mean(drawn < measured) < 0.6
