"""A model's own attributes are its own, whatever they are called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt

X = torch.linspace(-1, 1, 20).reshape(4, 5)


class Router(nn.Module):
    """Numbers of its own, as MuseSpark's router has one, under names that a converter might like too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, width))
        self.output_multiplier, self.weight_multiplier, self.parameter_multipliers = 3.0, 5.0, {"weight": 7.0}

    def forward(self, h: Tensor) -> Tensor:
        logits = h @ self.weight.T * self.weight_multiplier * self.parameter_multipliers["weight"]
        return torch.tanh(logits * self.output_multiplier)


class Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.router = nn.Linear(5, width), Router(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.router(self.embed(x))


@pytest.mark.parametrize("form", ["folded", "explicit"])
def test_a_module_keeps_its_own_multipliers_beside_those_of_the_plan(form: str) -> None:
    torch.manual_seed(0)
    plain = Model(32)
    plan = mt.plan(plain, "mup", base=16, factory=Model, form=form, example_inputs=X)
    assert plan["router.weight"].init_factor * plan["router.weight"].multiplier == pytest.approx(1 / 2)
    converted = Model(32)
    converted.load_state_dict(plain.state_dict())
    plan.apply(converted)
    hidden = plain.embed(X)
    expected = torch.tanh(hidden @ (plain.router.weight / 2).T * 3.0 * 5.0 * 7.0)
    assert torch.allclose(converted(X), expected, rtol=1e-5)
