"""Sizes at once, twice and three times a width: a*k + b, rounded or not, and what is neither."""

from __future__ import annotations

import pytest

from mutransfer.errors import ShapeError
from mutransfer.planning.sizes import compare


def dims(*sizes: int):
    probes = [{"w": (size,)} for size in sizes]
    return compare({"w": (sizes[2],)}, {"w": (sizes[0],)}, probes)["w"][0]


@pytest.mark.parametrize("sizes", [(16, 32, 48), (17, 33, 49), (16, 32, 44), (24, 48, 80), (100, 200, 301)])
def test_a_size_that_is_rounded_to_a_step_follows_the_width(sizes):
    """Squeeze-excite rounds to multiples of 4 or 8, a hidden layer of 8/3 times the width to whole channels."""
    found = dims(*sizes)
    assert found.grows
    assert (found.base, found.size) == (sizes[0], sizes[2])


@pytest.mark.parametrize("sizes", [(16, 48, 96), (64, 256, 576), (8, 16, 32), (8, 24, 32)])
def test_a_size_that_bends_is_refused(sizes):
    """k(k+1), k^2, 2^k, and one whose steps are as large as its growth."""
    with pytest.raises(ShapeError, match=r"it is not a\*k \+ b"):
        dims(*sizes)
