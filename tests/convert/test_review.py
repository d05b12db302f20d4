"""Models that an independent review broke the conversion with: each is converted right, or refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_models import Decoder, SharedWeight

import mutransfer as mt
from mutransfer.errors import RoleError
from mutransfer.planning.sites import attention_sites
from mutransfer.planning.trace import trace

X = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class SharedAndRead(SharedWeight):
    """One of the uses reads the weight itself, past the layer that owns it."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.one(torch.tanh(self.inp(x))))
        again = functional.linear(torch.tanh(hidden + self.two.bias), self.other.weight, self.other.bias)
        return self.out(hidden) + again


@pytest.mark.parametrize("kind", [SharedWeight, SharedAndRead])
@pytest.mark.parametrize("table", ["mup", "ntk", "mup-table9"])
def test_a_shared_weight_is_multiplied_in_each_of_its_uses(kind, table):
    def make(width: int) -> nn.Module:
        torch.manual_seed(0)
        return kind(width).double()

    folded, explicit = make(64), make(64)
    mt.parameterize(folded, table, base=16, factory=make, example_inputs=X)
    mt.parameterize(explicit, table, base=16, factory=make, example_inputs=X, form="explicit")
    torch.testing.assert_close(folded(X), explicit(X))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(folded(X), make(64)(X))


def test_a_depthwise_transposed_convolution_sums_over_no_channels():
    def make(width: int) -> nn.Module:
        return nn.ConvTranspose1d(width, width, 3, groups=width)

    plan = mt.plan(make(64), "mup", base=16, factory=make, example_inputs=torch.zeros(1, 64, 4), init="table")
    assert plan["weight"].m_in == 1
    assert plan["weight"].lr == 1


def test_a_grouped_transposed_convolution_is_asked_about():
    def make(width: int) -> nn.Module:
        return nn.ConvTranspose1d(width, width, 3, groups=4)

    with pytest.raises(RoleError, match="cannot be proven"):
        mt.plan(make(64), "mup", base=16, factory=make, example_inputs=torch.zeros(1, 64, 4))


def test_a_normalized_readout_that_would_not_feel_its_factor_is_refused():
    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(5, width), nn.utils.parametrizations.weight_norm(nn.Linear(width, 7)))

    with pytest.raises(RoleError, match=r"1\.parametrizations\.weight\.original1.*weight_norm"):
        mt.plan(make(64), "mup", base=16, factory=make)


class Drawn(nn.Module):
    def __init__(self, width: int, mean: float = 1.0, spread: float = 1.0) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, width), nn.Linear(width, 7)
        self.gain = nn.Parameter(mean + spread * torch.randn(width) * width**-0.5)
        nn.init.normal_(self.out.weight, mean=mean - 1, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inp(x) * self.gain)


def test_a_gain_drawn_around_one_keeps_its_mean():
    assert mt.plan(Drawn(64), "mup", base=16, factory=Drawn)["gain"].init_factor == 1.0


def test_a_matrix_drawn_off_zero_is_refused():
    def make(width: int) -> nn.Module:
        return Drawn(width, mean=2.0)

    with pytest.raises(RoleError, match=r"'out\.weight' is output and drawn around 1"):
        mt.plan(make(64), "mup", base=16, factory=make)


def test_a_draw_without_spread_and_a_zeroed_query_slice_are_read():
    class Zeroed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 7, bias=False)
            self.inp = nn.Linear(5, width)
            nn.init.normal_(self.out.weight, std=0.0)
            with torch.no_grad():
                self.qkv.weight[:width].zero_()

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.qkv(self.inp(x)).chunk(3, -1)[2])

    plan = mt.parameterize(Zeroed(64), "mup", base=16, factory=Zeroed, example_inputs=X.float())
    assert plan["out.weight"].init_law.kind == "constant"
    assert plan["qkv.weight"].init_law.measured


class Attention(nn.Module):
    def __init__(self, width: int, logits) -> None:
        super().__init__()
        self.inp, self.q, self.k = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, width)
        self.u, self.width, self.logits = nn.Parameter(torch.zeros(width)), width, logits

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.logits(self, x).softmax(-1) @ x


def _masked(self, x):
    logits = self.q(x) @ self.k(x).transpose(1, 2) / self.width**0.5
    return torch.where(torch.ones(3, 3).tril().bool(), logits, torch.tensor(-1e9)) + 0 * self.u.sum()


def _alpha(self, x):
    keys = self.k(x).transpose(1, 2)
    return torch.baddbmm(torch.zeros(2, 3, 3), self.q(x), keys, alpha=self.width**-0.5) + 0 * self.u.sum()


def _biased_late(self, x):
    return (self.q(x) + self.u) @ self.k(x).transpose(1, 2) / self.width**0.5


@pytest.mark.parametrize("logits", [_masked, _alpha, _biased_late])
def test_softmax_scales_are_read_in_every_spelling(logits):
    (site,) = attention_sites(trace(Attention(64, logits), (X.float(),)))
    assert site.scale == pytest.approx(1 / 8)


def test_a_bias_added_after_the_query_projection_carries_the_factor_too():
    def make(width: int) -> nn.Module:
        return Attention(width, _biased_late)

    torch.manual_seed(0)
    model = make(64)
    model.u.data.normal_()
    expected = copy.deepcopy(model)
    plan = mt.plan(model, "mup", base=16, factory=make, example_inputs=X.float(), init="keep")
    assert all(line.fold == 1 for line in plan), "kept values carry nothing"
    plan = mt.plan(make(64), "mup", base=16, factory=make, example_inputs=X.float())
    assert {plan[name].fold for name in ("q.weight", "q.bias", "u")} == {0.5}
    with torch.no_grad():
        for name in ("q.weight", "q.bias", "u"):
            model.get_parameter(name).mul_(0.5)
    hidden = expected.inp(X.float())
    torch.testing.assert_close(_biased_late(model, hidden), _biased_late(expected, hidden) / 2)


def test_two_softmaxes_in_one_module_are_each_set_by_their_own_attribute():
    class Two(Attention):
        def __init__(self, width: int) -> None:
            super().__init__(width, None)
            self.first = self.second = width**-0.5

        def forward(self, x: Tensor) -> Tensor:
            x = self.inp(x) + self.u
            q, k = self.q(x), self.k(x)
            return (q @ k.mT * self.first).softmax(-1) @ x + (k @ k.mT * self.second).softmax(-1) @ x

    model = Two(64)
    mt.parameterize(model, "mup", base=16, factory=Two, example_inputs=X.float())
    assert model.first == model.second == pytest.approx(1 / 16)


def test_a_saved_plan_of_the_base_itself_knows_what_grows(tmp_path):
    saved = mt.plan(Drawn(16), "mup", base=16, factory=Drawn).save(tmp_path / "base.json")
    plan = mt.plan(Drawn(16), "mup", base=saved, example_inputs=X.float(), hyperparameters={"lr.output": 2.0})
    assert plan["out.weight"].role == mt.Role.OUTPUT
    assert plan["out.weight"].lr == 2.0


def test_a_role_given_for_a_tied_tensor_keeps_its_readout():
    def make(width: int) -> nn.Module:
        return Decoder(width, tied=True)

    given = mt.plan(make(64), "mup", base=16, factory=make, roles={"embed.*": "input"})
    assert given["norm.weight"].fold == mt.plan(make(64), "mup", base=16, factory=make)["norm.weight"].fold == 0.25


def test_attn_mult_without_an_attention_is_refused():
    with pytest.raises(RoleError, match="attn_mult is given"):
        mt.plan(Drawn(64), "mup", base=16, factory=Drawn, hyperparameters={"attn_mult": 2.0})
