"""Small gradients do not hide the law of learning rates: eps is read off the optimizer's groups, not trained with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.check import subjects
from mutransfer.rules.scale import m_in
from mutransfer.rules.table import Parameterization, Role
from mutransfer.rules.tables import PARAMETERIZATIONS

SCALE = 2e-6
WRONG = PARAMETERIZATIONS["mup"].with_cell(Role.HIDDEN, "lr", lambda lr: lr * m_in**0.5, family="adam")


class Scaled(nn.Module):
    """A branch behind a layer scale, which makes its gradients smaller than Adam's eps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Linear(16, width), nn.Linear(width, width), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        stream = torch.tanh(self.embed(x))
        return self.head(stream + SCALE * torch.tanh(self.inner(stream)))


def slope(table: str | Parameterization) -> float:
    return mt.coord_check(Scaled, widths=[64, 128, 256], parameterization=table).slope("inner.weight").value


def test_layer_scale_hides_neither_a_right_nor_a_wrong_learning_rate() -> None:
    assert abs(slope("mup")) < 0.15
    assert slope(WRONG) == pytest.approx(0.5, abs=0.15)


def test_wrong_eps_is_found_all_the_same() -> None:
    """Negative control: it is no part of training, and the groups tell it."""
    wrong = PARAMETERIZATIONS["mup"].with_cell(Role.HIDDEN, "eps", lambda eps: eps * m_in**0.5, family="adam")
    report = mt.coord_check(Scaled, widths=[64, 128, 256], parameterization=wrong)
    assert (report.verdict, report.culprits[0].kind) == ("fail", "eps")


def octaves(scale: float, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of the branch's change at the smallest width."""
    monkeypatch.setitem(globals(), "SCALE", scale)
    return mt.coord_check(Scaled, widths=[64, 128, 256], seeds=4).slope("inner.weight").sizes[0]


def test_change_is_the_same_at_any_layer_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    assert octaves(2e-6, monkeypatch) == pytest.approx(octaves(1e-2, monkeypatch), abs=0.05)


@pytest.mark.slow
def test_eps_in_training_would_make_it_follow_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it is left out."""
    monkeypatch.setattr(subjects, "NEGLIGIBLE", 1.0)
    assert octaves(2e-6, monkeypatch) < octaves(1e-2, monkeypatch) - 0.3
