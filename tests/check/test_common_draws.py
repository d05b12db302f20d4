"""Every size of a seed draws the same: what a tensor of fixed size happens to be does not look like an exponent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.check import runs
from mutransfer.check.draws import CommonDraws
from mutransfer.errors import ConfigError


class Mixed(nn.Module):
    """Two numbers, drawn, stand between what grows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(8, width), nn.Linear(2, 2, bias=False), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.tanh(self.embed(x)).unflatten(-1, (-1, 2))
        return self.head(self.mix(pairs).flatten(-2))


def drawn(width: int, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(), CommonDraws(seed):
        return {name: p.detach() for name, p in Mixed(width).named_parameters()}


def test_tensors_of_one_shape_hold_the_same_at_every_width_and_others_with_every_seed() -> None:
    small, large, other = drawn(16, 0), drawn(64, 0), drawn(16, 1)
    assert torch.equal(small["mix.weight"], large["mix.weight"])
    assert not torch.equal(small["mix.weight"], other["mix.weight"])
    assert not torch.equal(small["embed.weight"], other["embed.weight"])


def test_draws_keep_their_law() -> None:
    values = torch.cat([drawn(64, seed)["embed.weight"].flatten() for seed in range(20)])
    bound = 8**-0.5  # of nn.Linear
    assert float(values.abs().max()) <= bound
    assert float(values.mean()) == pytest.approx(0.0, abs=4 * bound / 3**0.5 / len(values) ** 0.5)
    assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def spread(report: mt.CoordReport) -> float:
    slope = report.slope("head.weight")
    return slope.high - slope.low


def test_intervals_behind_a_fixed_size_are_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with draws of their own at every width they are wider."""

    class Own(CommonDraws):
        def __init__(self, seed: int) -> None:
            super().__init__(seed)
            self._next = int(np.random.default_rng().integers(2**31))

    common = mt.coord_check(Mixed, widths=[64, 128, 256], seeds=8)
    monkeypatch.setattr(runs, "CommonDraws", Own)
    own = mt.coord_check(Mixed, widths=[64, 128, 256], seeds=8)
    assert spread(common) < spread(own)


def test_weights_in_half_precision_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'embed\.weight' is held in bfloat16, .* Build the model in float32"):
        mt.coord_check(lambda width: Mixed(width).bfloat16(), widths=[16, 32, 64])
