"""init="table" fills a model that holds nothing: weights drawn, gains and biases as its constructor fills them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toy_models import Decoder

import mutransfer as mt
from mutransfer.errors import AlreadyParameterizedError, ShapeError

GARBAGE = 7.25


def emptied(model: nn.Module) -> nn.Module:
    """What `to_empty` leaves: memory that happens to be there."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(GARBAGE)
    return model


def on_meta(make) -> nn.Module:
    with torch.device("meta"):
        return make()


def zero_biases(width: int, *, tied: bool = False) -> nn.Module:
    model = Decoder(width, tied=tied)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


def filled(plan: mt.Plan, model: nn.Module) -> dict[str, Tensor]:
    plan.apply(emptied(model.to_empty(device="cpu")))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_a_model_from_meta_gets_gains_of_one_biases_of_zero_and_drawn_weights():
    model = on_meta(lambda: zero_biases(64))
    plan = mt.plan(model, "mup", base=16, factory=zero_biases, init="table")
    for name, tensor in filled(plan, model).items():
        if "norm" in name and name.endswith("weight"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif name.endswith("bias"):
            assert torch.equal(tensor, torch.zeros_like(tensor)), name
        else:
            assert float(tensor.std()) == pytest.approx(plan[name].init_std, rel=0.06), name
            assert abs(float(tensor.mean())) < 0.1 * plan[name].init_std, name


def test_a_bias_that_its_layer_draws_is_drawn():
    model = on_meta(lambda: Decoder(64))
    plan = mt.plan(model, "mup", base=16, factory=Decoder, init="table")
    bias = filled(plan, model)["blocks.0.qkv.bias"]
    assert float(bias.std()) == pytest.approx((3 * 16) ** -0.5, rel=0.2)


def test_a_gain_that_carries_a_fold_is_filled_with_it():
    def make(width: int) -> nn.Module:
        return zero_biases(width, tied=True)

    model = on_meta(lambda: make(64))
    plan = mt.plan(model, "mup", base=16, factory=make, init="table")
    assert torch.equal(filled(plan, model)["norm.weight"], torch.full((64,), 0.25))


def test_control_under_rescale_the_same_memory_is_refused():
    model = on_meta(lambda: Decoder(64))
    plan = mt.plan(model, "mup", base=16, factory=Decoder)
    with pytest.raises(AlreadyParameterizedError, match="is not as its constructor leaves it"):
        filled(plan, model)


class Gain(nn.Module):
    """A norm of the user's own, which has no `reset_parameters`; and a range, as a state-space model's A_log is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, width), nn.Linear(width, 7)
        self.gain = nn.Parameter(torch.ones(width))
        self.rates = nn.Parameter(torch.log(torch.arange(1.0, width + 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inp(x) * self.gain + self.rates)


def test_a_constant_that_is_not_one_number_keeps_what_it_holds():
    model = Gain(64)
    plan = mt.plan(model, "mup", base=16, factory=Gain, init="table")
    values = filled(plan, model)
    assert torch.equal(values["gain"], torch.ones(64))
    assert torch.equal(values["rates"], torch.full((64,), GARBAGE))


@pytest.mark.parametrize(("real", "unknown"), [(False, "gain"), (True, "rates")])
def test_where_nothing_tells_a_constant_it_is_asked_for_by_name(real, unknown):
    """Real values show a gain of 1; of a range they show no more than of a draw."""
    model, base = on_meta(lambda: Gain(64)), Gain(16) if real else on_meta(lambda: Gain(16))
    with pytest.raises(ShapeError, match=rf"what '{unknown}' is filled with.*factory="):
        mt.plan(model, "mup", base=base, init="table")


class Plain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, width), nn.Linear(width, 7)
        self.gain = nn.Parameter(torch.full((width,), 0.5))
        nn.init.zeros_(self.inp.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inp(x) * self.gain)


@pytest.mark.parametrize("saved", [False, True])
def test_a_base_with_real_weights_or_a_saved_plan_tells_the_constants(saved, tmp_path):
    base = mt.plan(Plain(16), "mup", base=16, factory=Plain).save(tmp_path / "plan.json") if saved else Plain(16)
    model = on_meta(lambda: Plain(64))
    values = filled(mt.plan(model, "mup", base=base, example_inputs=torch.zeros(2, 5), init="table"), model)
    assert torch.equal(values["gain"], torch.full((64,), 0.5))
    assert torch.equal(values["inp.bias"], torch.zeros(64))
    assert float(values["inp.weight"].std()) == pytest.approx(5**-0.5, rel=0.2)


class Loose(nn.Module):
    """A matrix that no layer holds, drawn alike at every width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp, self.weight = nn.Linear(5, width), nn.Parameter(0.02 * torch.randn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.inp(x) @ self.weight


def test_a_loose_weight_is_known_by_the_values_of_a_base_that_cannot_be_built_again():
    plan = mt.plan(Loose(64), "mup", base=Loose(16), example_inputs=torch.zeros(2, 5))
    assert plan["weight"].init_factor == pytest.approx(0.5)
    assert plan["weight"].base_law.kind == "drawn"


def test_a_matrix_drawn_off_zero_is_drawn_around_it_and_a_gain_is_not():
    class Off(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.inp, self.out = nn.Linear(5, width), nn.Linear(width, 7)
            self.gain = nn.Parameter(1 + 0.02 * torch.randn(width))
            nn.init.normal_(self.out.weight, mean=1.0, std=0.02)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.inp(x) * self.gain)

    model = on_meta(lambda: Off(64))
    values = filled(mt.plan(model, "mup", base=16, factory=Off, init="table"), model)
    assert abs(float(values["out.weight"].mean())) < 0.1
    assert float(values["gain"].mean()) == pytest.approx(1.0, abs=0.02)
    assert float(values["gain"].std()) == pytest.approx(0.02, rel=0.4)
