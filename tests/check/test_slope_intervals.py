from __future__ import annotations

import numpy as np
import pytest

from mutransfer.check.statistics import intervals, seed_slopes, t_cdf, t_quantile


@pytest.mark.parametrize(
    ("probability", "freedom", "tabulated"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.95, 5, 2.015),
        (0.999, 7, 4.785),
        (0.975, 10, 2.228),
        (0.995, 11, 3.106),
        (0.9995, 30, 3.646),
    ],
)
def test_quantiles_of_students_t_are_the_tables(probability, freedom, tabulated):
    assert t_quantile(probability, freedom) == pytest.approx(tabulated, abs=6e-4)


def test_the_distribution_is_symmetric_about_one_half_and_grows_to_one():
    assert t_cdf(0.0, 4) == t_cdf(0.0, 5) == 0.5
    assert t_cdf(1e6, 4) == pytest.approx(1.0)


def test_a_planted_exponent_is_found_exactly_where_there_is_no_noise():
    log_widths = [6.0, 7.0, 8.0, 9.0]
    log_rms = np.outer(np.array(log_widths), [0.5, -1.0]) + 3.0
    assert seed_slopes(log_widths, log_rms) == pytest.approx([0.5, -1.0])


def family_coverage(tensors: int, *, family: int) -> float:
    """How often all intervals of a check cover their exponents, where noise differs between tensors."""
    random, hits, checks = np.random.default_rng(0), 0, 200
    for _ in range(checks):
        noise = np.exp(random.normal(np.log(0.05), 0.3, tensors))
        slopes = [seed_slopes([6, 7, 8, 9], random.normal(0, sd, (4, 8))) for sd in noise]
        hits += all(i.lowest <= 0 <= i.highest for i in intervals(slopes, family=family))
    return hits / checks


def test_all_intervals_of_a_check_hold_together_nine_times_in_ten():
    assert 0.84 <= family_coverage(40, family=40) <= 0.97
    assert family_coverage(40, family=1) < 0.5  # the control: single intervals do not hold together


def test_an_interval_by_itself_holds_nineteen_times_in_twenty():
    random, hits, checks, tensors = np.random.default_rng(0), 0, 50, 40
    for _ in range(checks):
        found = intervals([random.normal(0, 0.1, 8) for _ in range(tensors)], family=tensors)
        hits += sum(i.low <= 0 <= i.high for i in found)
        assert all(i.lowest <= i.low <= i.high <= i.highest for i in found)
    assert hits / checks / tensors == pytest.approx(0.95, abs=0.02)


def test_a_tensor_that_is_off_by_the_margin_hardly_passes_however_many_others_there_are():
    """What a pass claims of every tensor needs no more of each; that it be outside does."""
    random, checks = np.random.default_rng(0), 400
    passed = outside = 0
    for _ in range(checks):
        right = [random.normal(0, 0.1, 8) for _ in range(40)]
        found = intervals([random.normal(0.25, 0.1, 8), *right], family=41)
        passed += all(i.low >= -0.25 and i.high <= 0.25 for i in found)
        outside += any(i.lowest > 0.25 or i.highest < -0.25 for i in found)
    assert passed / checks < 0.05
    assert outside / checks < 0.02


def test_a_quiet_tensor_borrows_noise_from_the_others():
    quiet, loud = np.zeros(8), np.random.default_rng(1).normal(0, 1, 8)
    narrow, _, wide = intervals([quiet, loud, loud], family=3)
    alone = intervals([quiet], family=3)[0]
    assert alone.high == alone.low == 0
    assert 0 < narrow.high < wide.high - wide.value
