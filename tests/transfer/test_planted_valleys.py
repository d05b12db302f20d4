"""Sweeps whose truth is known: the intervals must hold it as often as they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mutransfer.transfer import Point, analyze

SWEEPS = 200


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("drift", [0.0, -0.5])
@pytest.mark.parametrize("cubic", [0.0, 0.004], ids=["parabola", "steeper towards divergence"])
def test_intervals_hold_the_truth_in_82_to_97_percent_of_sweeps(planted, seeds, drift, cubic):
    rng = np.random.default_rng([seeds, int(-10 * drift), int(1000 * cubic)])
    u = -3 * drift  # octaves by which the smallest size's optimum misses the largest size's
    regret = (0.03 * u**2 + cubic * u**3) / 2.2
    slope_held, regret_held = [], []
    for sweep in range(SWEEPS):
        points = planted(rng, drift=drift, cubic=cubic, seeds=seeds, offset=rng.uniform(-0.5, 0.5))
        found = analyze(points, draws=200, seed=sweep)["mup"]
        slope_held.append(found.slope.low <= drift <= found.slope.high)
        regret_held.append(found.regret.low <= regret <= found.regret.high)
    assert 0.82 <= np.mean(slope_held) <= 0.97
    assert 0.82 <= np.mean(regret_held) <= 0.97


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
