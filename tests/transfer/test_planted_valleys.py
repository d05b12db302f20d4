"""Sweeps whose truth is known: the intervals must hold it as often as they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mutransfer.transfer import Point, analyze

SWEEPS = 200


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("drift", [0.0, -0.5])
@pytest.mark.parametrize(
    "cubic",
    [
        pytest.param(0.0, id="parabola"),
        pytest.param(0.004, id="steeper towards divergence", marks=pytest.mark.slow),
    ],
)
def test_intervals_hold_the_truth_in_82_to_97_percent_of_sweeps(planted, seeds, drift, cubic):
    rng = np.random.default_rng([seeds, int(-10 * drift), int(1000 * cubic)])
    u = -3 * drift  # octaves by which the smallest size's optimum misses the largest size's
    regret = (0.03 * u**2 + cubic * u**3) / 2.2
    slope_held, regret_held, curvature_held = [], [], []
    for sweep in range(SWEEPS):
        points = planted(rng, drift=drift, cubic=cubic, seeds=seeds, offset=rng.uniform(-0.5, 0.5))
        found = analyze(points, draws=200, seed=sweep)["mup"]
        slope_held.append(found.slope.low <= drift <= found.slope.high)
        regret_held.append(found.regret.low <= regret <= found.regret.high)
        curvature = found.optimum[sweep % 4].curvature
        curvature_held.append(curvature.low <= 0.03 / 2.2 <= curvature.high)
    assert 0.82 <= np.mean(slope_held) <= 0.97
    assert 0.82 <= np.mean(regret_held) <= 0.97
    assert 0.82 <= np.mean(curvature_held) <= 0.97


def beside_a_wall(rng, drift, step):
    """Grids that lie anywhere; one octave above the optimum the loss begins to rise thirty times as steeply."""
    grid = np.arange(-14, 0, step) + rng.uniform(0, step)
    first = -6 + rng.uniform(-1, 1) - 1.5 * drift
    return [
        Point("mup", size, 2.0**x, seed, 2.2 + 0.02 * u**2 + 0.6 * max(u - 1, 0) + rng.normal(0, 0.003))
        for doublings, size in enumerate((32, 64, 128, 256))
        for x in grid
        for seed in (0, 1, 2)
        if (u := x - first - drift * doublings) < 4
    ]


@pytest.mark.parametrize("step", [1.0, 2.0], ids=["octaves", "two octaves"])
def test_no_grid_hides_a_drift_beside_a_wall(step):
    """A parabola's optimum beside a wall is off by up to half an octave, and by how much depends on the grid."""
    rng = np.random.default_rng(7)
    found = [analyze(beside_a_wall(rng, -0.3, step), draws=200, seed=k)["mup"] for k in range(30)]
    assert "transfers" not in [one.verdict for one in found]
    assert np.mean([one.slope.low <= -0.3 <= one.slope.high for one in found]) > 0.5


@pytest.mark.parametrize("step", [1.0, 2.0], ids=["octaves", "two octaves"])
def test_where_the_optimum_stays_a_wall_and_a_coarse_grid_cost_nothing(step):
    """The grid then lies alike around every optimum."""
    rng = np.random.default_rng(8)
    found = [analyze(beside_a_wall(rng, 0.0, step), draws=200, seed=k)["mup"] for k in range(10)]
    assert {one.verdict for one in found} == {"transfers"}


def test_an_interval_around_a_wrong_truth_would_be_noticed(planted):
    """The control of the coverage test: a drift that is off by 0.1 octaves is held far too rarely."""
    rng = np.random.default_rng(0)
    found = [analyze(planted(rng, seeds=3), draws=200)["mup"].slope for _ in range(40)]
    assert np.mean([slope.low <= 0.1 <= slope.high for slope in found]) < 0.5


def test_noise_towards_divergence_does_not_widen_the_interval(planted):
    """Ten times the noise three octaves above the optimum, as near divergence, says nothing about the optimum."""
    rng = np.random.default_rng(1)
    calm, wild = [], []
    for _ in range(30):
        points = planted(rng, seeds=3)
        noisy = [
            Point(p.parameterization, p.size, p.lr, p.seed, p.loss + (rng.normal(0, 0.05) if p.lr > 2**-3.5 else 0))
            for p in points
        ]
        calm.append(_width(points))
        wild.append(_width(noisy))
    assert np.median(wild) < 1.5 * np.median(calm)


def _width(points: list[Point]) -> float:
    slope = analyze(points, draws=200)["mup"].slope
    assert slope.low is not None
    assert slope.high is not None
    return slope.high - slope.low


def test_loud_small_models_do_not_widen_the_large_ones_optimum(planted):
    """Seeds disagree less in large models: each size keeps its own noise level."""
    rng = np.random.default_rng(2)
    even = [analyze(planted(rng, seeds=3, noise=0.002), draws=200)["mup"].optimum[-1].log2 for _ in range(20)]
    rng = np.random.default_rng(2)
    loud = []
    for _ in range(20):
        points = [
            replace(p, loss=p.loss + (rng.normal(0, 0.008) if p.size == 32 else 0))
            for p in planted(rng, seeds=3, noise=0.002)
        ]
        loud.append(analyze(points, draws=200)["mup"].optimum[-1].log2)
    assert np.median([o.high - o.low for o in loud]) < 2 * np.median([o.high - o.low for o in even])


VALLEYS = {
    "parabola": lambda u: 0.03 * u**2,
    "flat bottom": lambda u: 0.04 * np.maximum(np.abs(u) - 1, 0) ** 2,
    "quartic": lambda u: 0.0026 * u**4,
    "wall": lambda u: 0.03 * u**2 + 0.5 * np.maximum(u - 1.2, 0),
    "shallow": lambda u: 0.004 * u**2,
}


@pytest.mark.parametrize("step", [1.0, 0.5], ids=["octaves", "half octaves"])
@pytest.mark.parametrize("shape", list(VALLEYS))
def test_every_estimate_lies_within_its_own_interval(shape, step):
    rng = np.random.default_rng(11)
    for sweep in range(20):
        points = [
            Point(name, size, 2.0**x, seed, 2.2 + float(VALLEYS[shape](x - best)) + rng.normal(0, 0.005))
            for name, best in (("mup", rng.uniform(-6.5, -5.5)), ("sp", -6.1))
            for size in (32, 64, 128)
            for x in np.arange(-9, -3, step)
            for seed in (0, 1, 2)[: 2 + sweep % 2]
        ]
        for one in analyze(points, draws=200, seed=sweep).parameterizations.values():
            beside = (one.slope, one.drift, one.regret, one.curvature_slope, one.loss_gap)
            for part in (*beside, *(p for best in one.optimum for p in (best.log2, best.lr, best.curvature))):
                assert part.low is None or part.low <= part.value <= part.high


def test_a_valley_that_is_lost_in_noise_has_no_curvature_slope():
    rng = np.random.default_rng(4)
    flat = [
        Point("mup", n, 2.0**k, s, 2 + rng.normal(0, 0.01)) for n in (32, 64) for k in range(-9, -3) for s in (0, 1)
    ]
    found = analyze(flat)["mup"].curvature_slope
    assert (found.value, found.low) == (None, None)
    assert "does not bend" in found.reason
