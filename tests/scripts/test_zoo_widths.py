"""At which widths the zoo checks a model: none of its sizes that grow should be narrower than a step has positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo.stages import NARROWEST, widths_of
from zoo.subjects import Small


def bottleneck(over: int, *more: type[nn.Linear]) -> Small:
    def make(width: int) -> nn.Module:
        inner = width // over
        square = [kind(width, width) for kind in more]
        return nn.Sequential(nn.Linear(8, width), *square, nn.Linear(width, inner), nn.Linear(inner, width))

    return Small(64, make, lambda seed: (torch.randn(8, 8),))


@pytest.mark.parametrize(("over", "first"), [(1, 64), (2, 64), (8, 256), (16, 512)])
def test_the_smallest_size_that_grows_decides_where_the_widths_begin(over: int, first: int) -> None:
    widths = widths_of(bottleneck(over))
    assert widths[:3] == [first, 2 * first, 4 * first]
    assert widths[0] // over >= NARROWEST


def test_what_would_cost_too_much_begins_below() -> None:
    assert widths_of(bottleneck(64))[0] == 64 * NARROWEST
    assert widths_of(bottleneck(64, nn.Linear)) == [1024, 2048, 4096]  # 8192 squared is too much
