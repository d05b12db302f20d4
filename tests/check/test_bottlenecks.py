"""What lies behind a bottleneck of fixed size may begin small, as a readout's result does, but is not let off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.rules.scale import m_in
from mutransfer.rules.table import Parameterization, Role
from mutransfer.rules.tables import PARAMETERIZATIONS

WIDTHS = [64, 128, 256]
BEHIND = "up.weight"


class Bottleneck(nn.Module):
    """Everything goes through six numbers, or with a stream beside them, only a branch does."""

    def __init__(self, width: int, *, stream: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.first, self.down = nn.Linear(8, width), nn.Linear(width, 6)
        self.norm = nn.LayerNorm(6) if norm else nn.Identity()
        self.up, self.hidden, self.head = nn.Linear(6, width, bias=False), nn.Linear(width, width), nn.Linear(width, 16)
        self.stream = stream

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        branch = self.up(self.norm(torch.tanh(self.down(x))))
        return self.head(torch.tanh(self.hidden(x + branch if self.stream else branch)))


def vectors(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 8, generator=generator), torch.randint(16, (8,), generator=generator)


def check(table: str | Parameterization = "mup", **kind: bool) -> mt.CoordReport:
    return mt.coord_check(
        lambda width: Bottleneck(width, **kind), widths=WIDTHS, parameterization=table, batches=vectors
    )


def with_hidden_lr(power: float) -> Parameterization:
    return PARAMETERIZATIONS["mup"].with_cell(Role.HIDDEN, "lr", lambda lr: lr * m_in**power, family="adam")


def test_bottleneck_passes_though_what_lies_behind_begins_small() -> None:
    report = check()
    assert report.slope(BEHIND, "init").value < -0.25
    assert report.verdict == "pass", str(report)


@pytest.mark.parametrize("power", [1.0, 0.5, -0.5, -1.0])
@pytest.mark.parametrize("cell", ["lr", "init_std"])
def test_wrong_cell_is_found_behind_a_bottleneck_as_anywhere(cell: str, power: float) -> None:
    """Negative control: what shrinks is let off by as much as what it meets shrinks, not more."""
    family = {"family": "adam"} if cell == "lr" else {}
    wrong = PARAMETERIZATIONS["mup"].with_cell(Role.HIDDEN, cell, lambda own: own * m_in**power, **family)
    report = check(wrong)
    assert report.verdict == "fail"
    assert report.culprits[0].name == "hidden.weight"


def test_branch_with_a_bottleneck_lets_nothing_off_on_the_stream() -> None:
    """The sum has the stream's size, so that what shrinks behind it is found."""
    assert check(stream=True).verdict == "pass"
    report = check(with_hidden_lr(-0.5), stream=True)
    assert report.verdict == "fail"
    assert report.culprits[0].name == "hidden.weight"


def test_norm_ends_what_a_bottleneck_may_begin_with() -> None:
    report = check(norm=True)
    assert report.slope(BEHIND, "init").law == 0.0


def test_standard_parameterization_has_no_small_readout() -> None:
    """Its readouts begin at the size of 1 by law, so nothing behind them may be smaller."""
    report = check("sp")
    assert report.slope(BEHIND, "init").law == 0.0
