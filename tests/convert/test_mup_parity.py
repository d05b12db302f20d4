"""The factors equal microsoft/mup's (1.0.0, installed) on MLP, CNN and Transformer; where they differ, a test says why.

mup marks parameters, so each model is built twice: once for mup with its hand edits, once plain for us.
"""

from __future__ import annotations

import json
from pathlib import Path

import mup
import pytest
import torch
from torch import nn
from toy_models import Decoder

import mutransfer as mt
from mutransfer.errors import RuleError

BASE, DELTA, WIDTH = 16, 24, 64


def mlp(width: int, readout: type = nn.Linear) -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2 * width), nn.ReLU(), readout(2 * width, 3)
    )  # fmt: skip


def cnn(width: int, readout: type = nn.Linear) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2 * width, 3), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), readout(8 * width, 10),
    )  # fmt: skip


def decoder(width: int, readout: type = nn.Linear) -> nn.Module:
    model = Decoder(width)
    model.readout = readout(width, model.readout.out_features)
    return model


MODELS = {"mlp": mlp, "cnn": cnn, "decoder": decoder}


def mup_model(make) -> nn.Module:
    torch.manual_seed(0)
    model = make(WIDTH, mup.MuReadout)
    mup.set_base_shapes(model, make(BASE, mup.MuReadout), delta=make(DELTA, mup.MuReadout))
    return model


def factors(groups, names) -> dict[str, tuple[float, float]]:
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize("kind", sorted(MODELS))
@pytest.mark.parametrize(("ours", "theirs"), [("adamw", mup.MuAdamW), ("sgd", mup.MuSGD)])
def test_lr_and_decay_factors_equal_mups(kind, ours, theirs):
    make = MODELS[kind]
    reference = mup_model(make)
    names = {id(p): name for name, p in reference.named_parameters()}
    expected = factors(theirs(reference.parameters(), lr=1.0, weight_decay=1.0).param_groups, names)
    model = make(WIDTH)
    plan = mt.parameterize(model, "mup", base=BASE, factory=make, optimizer=ours, form="explicit")
    own_names = {id(p): name for name, p in model.named_parameters()}
    assert factors(plan.param_groups(model, lr=1.0, weight_decay=1.0), own_names) == expected
    assert len(set(expected.values())) > 1, "a table of ones would agree with anything"


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_init_stds_equal_mups(kind):
    """Pooled over seeds; mup's readout bias is scaled up, ours is scalar and stays (see below)."""
    make = MODELS[kind]
    pooled: dict[str, tuple[list, list]] = {}
    for seed in range(6):
        torch.manual_seed(seed)
        reference = make(WIDTH, mup.MuReadout)
        mup.set_base_shapes(reference, make(BASE, mup.MuReadout), delta=make(DELTA, mup.MuReadout))
        torch.manual_seed(100 + seed)
        model = make(WIDTH)
        mt.parameterize(model, "mup", base=BASE, factory=make, form="explicit")
        for (name, theirs), (_, ours) in zip(reference.named_parameters(), model.named_parameters(), strict=True):
            pooled.setdefault(name, ([], []))
            pooled[name][0].append(theirs.detach().flatten())
            pooled[name][1].append(ours.detach().flatten())
    for name, (theirs, ours) in pooled.items():
        expected, std = torch.cat(theirs).std(), torch.cat(ours).std()
        samples = sum(t.numel() for t in ours)
        if expected > 0 and samples > 400:
            assert float(std / expected) == pytest.approx(1.0, abs=6 / (2 * samples) ** 0.5), name


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_the_readout_multiplier_equals_mups(kind):
    make = MODELS[kind]
    reference = [m for m in mup_model(make).modules() if isinstance(m, mup.MuReadout)]
    plan = mt.plan(make(WIDTH), "mup", base=BASE, factory=make, form="explicit")
    (swap,) = plan.swaps
    assert swap.multiplier == pytest.approx(1 / reference[0].width_mult())


PARITY = json.loads((Path(__file__).parent / "mup_parity.json").read_text())


class OneParameter(nn.Module):
    """A parameter of the given shape, used as its description says."""

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kind = kind
        self.p = nn.Parameter(torch.randn(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind.startswith("embedding"):
            return nn.functional.embedding(x.long(), self.p)
        if "conv" in self.kind:
            groups = self.p.shape[0] if self.kind.startswith("depthwise") else 1
            image = x.new_ones(1, groups * self.p.shape[1], 5, 5)
            return nn.functional.conv2d(image, self.p, groups=groups)
        if self.p.ndim == 2:
            return x.new_ones(2, self.p.shape[1]) @ self.p.T
        return self.p * 2 + x.sum()


class WithWidth(nn.Module):
    """The parameter beside another that grows: without one, nothing tells what width is."""

    def __init__(self, kind: str, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.one = OneParameter(kind, shape)
        self.beside = nn.Linear(3, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x).sum() + self.beside(x).sum()


@pytest.mark.parametrize("entry", PARITY, ids=lambda e: e["param"])
def test_every_measured_shape_of_the_parity_file(entry):
    shape = tuple(entry["shape"])
    base_shape = tuple(b or s for b, s in zip(entry["base"], shape, strict=True))
    torch.manual_seed(0)
    base, model = WithWidth(entry["param"], base_shape, 16), WithWidth(entry["param"], shape, 64)
    for ours, theirs in (("adamw", "MuAdamW"), ("sgd", "MuSGD")):
        plan = mt.plan(
            model, "mup", base=base, example_inputs=torch.zeros(3), optimizer=ours, form="explicit", init="table"
        )
        line = plan["one.p"]
        assert line.base_shape == base_shape
        assert line.lr == pytest.approx(entry[theirs]["lr_mult"])
        assert line.weight_decay == pytest.approx(entry[theirs]["wd_mult"])
    row = mt.PARAMETERIZATIONS["mup"].rows[line.role]
    expected = entry["init_std_ratio_to_base"]["normal_ std=1"]
    assert row.init_std.at(m_in=line.m_in, m_out=line.m_out) == pytest.approx(expected, rel=0.03)


def test_difference_l2_decay_in_adam_is_refused():
    """mup's MuAdam scales it by m as if it were decoupled; no width law is known (rules: decay inside the gradient)."""
    model = mlp(WIDTH)
    plan = mt.parameterize(model, "mup", base=BASE, factory=mlp, optimizer="adam")
    with pytest.raises(RuleError, match="adamw"):
        plan.param_groups(model, lr=1.0, weight_decay=0.1)
    model = mlp(WIDTH)
    asked = mt.parameterize(model, "mup", base=BASE, factory=mlp, optimizer="adam-l2", form="explicit")
    assert {g["weight_decay"] for g in asked.param_groups(model, lr=1.0, weight_decay=0.1)} == {0.1}


def test_difference_xavier_on_positions_keeps_its_size():
    """mup looks at dimensions 0 and 1 of (1, T, d) and shrinks it by m^-1/2 (0.353 at m = 8); inputs must not."""

    class Positions(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.empty(1, 16, width))
            nn.init.xavier_normal_(self.p)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.p

    plan = mt.plan(Positions(512), "mup", base=64, factory=Positions, example_inputs=torch.zeros(1, 16, 512))
    assert plan["p"].init_std == pytest.approx(plan["p"].base_law.std)


def test_difference_a_transposed_weight_scales_by_what_it_contracts():
    """mup takes the last dimension for fan-in: for (in, out) weights that is fan-out, and lr and init are wrong."""

    class Transposed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(2 * width, width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w

    base, model = Transposed(16), Transposed(64)
    base.w = nn.Parameter(torch.randn(16, 16))  # fan-in 16 -> 128, fan-out 16 -> 64
    plan = mt.plan(model, "mup", base=base, example_inputs=torch.zeros(1, 128), init="table")
    assert plan["w"].m_in == 8
    assert plan["w"].lr == 1 / 8
    mup.set_base_shapes(model, base, delta=Transposed(24), do_assert=False)
    assert model.w.infshape.width_mult() == 4


def test_difference_a_tied_embedding_is_not_rescaled():
    """MuSharedReadout multiplies the shared tensor by sqrt(m) (microsoft/mup#55); Table 8 keeps it."""

    def make(width: int) -> nn.Module:
        return Decoder(width, tied=True)

    model = make(WIDTH)
    before = model.embed.weight.detach().clone()
    mt.parameterize(model, "mup", base=BASE, factory=make)
    assert torch.equal(before, model.embed.weight)


def test_difference_a_readout_bias_is_left_at_its_base_size():
    """MuReadout multiplies its bias by sqrt(m) from a default that shrinks: the same size. Ours reads the law."""
    plan = mt.plan(mlp(WIDTH), "mup", base=BASE, factory=mlp)
    assert plan["4.bias"].role == mt.Role.SCALAR
    assert plan["4.bias"].init_std == pytest.approx(plan["4.bias"].base_law.std)


def test_difference_eps_follows_the_gradient():
    """mup never touches eps; TP-V B.3 scales it by 1/m in Table 8's variables."""
    plan = mt.plan(mlp(WIDTH), "mup", base=BASE, factory=mlp, form="explicit")
    assert [line.eps for line in plan] == [0.25, 0.25, 0.25, 0.25, 0.25, 1.0]


def test_difference_recurrent_weights_keep_their_base_size():
    """mup leaves U(+-h^-1/2) of an LSTM's input weights: 0.036 where the base has 0.1; they must be equal."""

    def make(width: int) -> nn.Module:
        return nn.LSTM(5, width)

    plan = mt.plan(make(WIDTH), "mup", base=BASE, factory=make)
    assert plan["weight_ih_l0"].role == mt.Role.INPUT
    assert plan["weight_ih_l0"].init_std == pytest.approx(plan["weight_ih_l0"].base_law.std)
    assert plan["weight_hh_l0"].role == mt.Role.HIDDEN
