"""Parameter groups: few, merged, named, the user's own kept; clipping in the gauge."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from toy_models import Decoder, token_batches, token_loss

import mutransfer as mt
from mutransfer.errors import ConfigError, RoleError, RuleError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Decoder(64)


@pytest.fixture
def plan(model):
    return mt.parameterize(model, "mup", base=16, factory=Decoder)


def test_there_are_as_many_groups_as_distinct_triples(model, plan):
    groups = plan.param_groups(model, lr=2**-8, weight_decay=0.1, eps=1e-8)
    triples = {(line.lr, line.eps, line.weight_decay) for line in plan}
    assert len(groups) == len(triples) == 7
    assert sorted(n for g in groups for n in g["param_names"]) == sorted(plan.names())


def test_a_group_holds_what_its_names_say(model, plan):
    named = dict(model.named_parameters())
    for group in plan.param_groups(model, lr=1.0, weight_decay=1.0):
        for name, tensor in zip(group["param_names"], group["params"], strict=True):
            assert tensor is named[name]
            assert (group["lr"], group["weight_decay"]) == (plan[name].lr, plan[name].weight_decay)


def test_the_users_own_groups_keep_their_decay_lr_and_other_keys(model, plan):
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    own = [{"params": decayed, "weight_decay": 0.2, "tag": "decayed"}, {"params": rest, "weight_decay": 0.0, "lr": 0.5}]
    groups = plan.param_groups(model, lr=1.0, weight_decay=0.9, groups=own)
    by_name = {name: group for group in groups for name in group["param_names"]}
    assert by_name["blocks.0.up.weight"]["weight_decay"] == pytest.approx(0.2 * 4)
    assert by_name["blocks.0.up.weight"]["tag"] == "decayed"
    assert by_name["norm.weight"]["weight_decay"] == 0.0
    assert by_name["norm.weight"]["lr"] == 0.5
    assert own[0]["weight_decay"] == 0.2, "the user's own dicts are not changed"


def test_a_tensor_of_another_model_is_refused(model, plan):
    with pytest.raises(RoleError, match="no parameter of this model"):
        plan.param_groups(model, lr=1.0, groups=[{"params": [nn.Parameter(torch.zeros(3))]}])


def test_frozen_parameters_are_planned_and_not_grouped():
    model = Decoder(64)
    model.embed.weight.requires_grad_(False)
    plan = mt.parameterize(model, "mup", base=16, factory=Decoder)
    assert plan["embed.weight"].frozen
    assert "input (frozen)" in str(plan)
    assert "embed.weight" not in [n for g in plan.param_groups(model, lr=1.0) for n in g["param_names"]]


def test_a_tensor_lr_is_scaled_per_group_and_left_alone(model, plan):
    lr = torch.tensor(1.0)
    groups = plan.param_groups(model, lr=lr)
    assert sorted({float(g["lr"]) for g in groups}) == pytest.approx([64 / 304, 0.25, 1.0])
    assert lr == 1.0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_lr_must_be_positive(model, plan, value):
    with pytest.raises(ConfigError, match=r"lr=.*must be positive"):
        plan.param_groups(model, lr=value)


@pytest.mark.parametrize(
    "given",
    [
        {"lr": "0.1"},
        {"lr": None},
        {"lr": True},
        {"lr": torch.tensor([0.1, 0.2])},
        {"lr": 0.1, "eps": "small"},
        {"lr": 1, "weight_decay": []},
    ],
)
def test_what_is_no_number_is_called_that(model, plan, given):
    for make in (plan.param_groups, plan.make_optimizer):
        with pytest.raises(ConfigError, match=r"must be a number"):
            make(model, **given)
    assert plan.param_groups(model, lr=np.float32(0.1), weight_decay=1, eps=torch.tensor(0.1))


def test_a_number_in_the_users_own_group_is_checked_too(model, plan):
    with pytest.raises(ConfigError, match=r"lr='0\.1' must be a number"):
        plan.param_groups(model, lr=1.0, groups=[{"params": model.parameters(), "lr": "0.1"}])


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([{"lr": 0.1}], r"a dict with 'lr' where a parameter group"),
        ([{"params": 5}], r"a dict with 'params' where"),
        ([nn.Parameter(torch.zeros(3))], "Parameter where"),
        ({"params": []}, "str where"),
        (5, "int where"),
    ],
)
def test_a_group_is_a_dict_with_params(model, plan, groups, words):
    with pytest.raises(ConfigError, match=f"{words}.*under 'params'"):
        plan.param_groups(model, lr=1.0, groups=groups)
    with pytest.warns(UserWarning, match="leaves out"):
        assert plan.param_groups(model, lr=1.0, groups=[{"params": model.norm.weight}])


def test_what_the_users_groups_leave_out_is_listed(model, plan):
    first, *rest = [p for p in model.parameters() if p.requires_grad]
    name = next(name for name, p in model.named_parameters() if p is first)
    with pytest.warns(UserWarning, match=f"leaves out {re.escape(name)}: .*Add it to a group"):
        plan.param_groups(model, lr=1.0, groups=[{"params": rest}])
    with pytest.warns(UserWarning, match=rf"leaves out .* and {len(rest) - 3} more"):
        plan.make_optimizer(model, lr=1.0, groups=[{"params": [first]}])
    first.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.param_groups(model, lr=1.0, groups=[{"params": rest}])
        plan.param_groups(model, lr=1.0)


@pytest.mark.parametrize("call", ["param_groups", "make_optimizer"])
def test_groups_in_the_models_place_or_behind_it_are_told_their_name(model, plan, call):
    own = [{"params": list(model.parameters())}]
    with pytest.raises(ConfigError, match=rf"plan.{call} takes the model and nothing else .* as groups="):
        getattr(plan, call)(model, own, lr=1.0)
    with pytest.raises(ConfigError, match=r"parameter groups of your own as groups="):
        getattr(plan, call)(own, lr=1.0)


@pytest.mark.parametrize("params", [["norm.weight"], "norm.weight", ("norm.weight",)])
def test_a_name_in_a_parameters_place_is_called_a_name(model, plan, params):
    with pytest.raises(
        ConfigError, match=r"holds the name 'norm\.weight', and tensors are expected.*get_parameter\('n"
    ):
        plan.param_groups(model, lr=1.0, groups=[{"params": params}])
    with pytest.warns(UserWarning, match="leaves out"):
        (group,) = plan.param_groups(model, lr=1.0, groups=[{"params": [model.get_parameter("norm.weight")]}])
    assert group["param_names"] == ["norm.weight"]
    with pytest.warns(UserWarning, match="leaves out"):
        assert plan.param_groups(model, lr=1.0, groups=[{"params": [("norm.weight", model.norm.weight)]}])


@pytest.mark.parametrize("item", [5, None, ("norm.weight", 5)])
def test_what_is_neither_a_tensor_nor_a_name_is_called_no_parameter(model, plan, item):
    with pytest.raises(RoleError, match="that is no parameter of this model"):
        plan.param_groups(model, lr=1.0, groups=[{"params": [item]}])


def test_l2_inside_adam_is_refused_unless_asked_for_by_name():
    model = Decoder(64)
    plan = mt.parameterize(model, "mup", base=16, factory=Decoder, optimizer="adam")
    with pytest.raises(RuleError, match="adam-l2"):
        plan.make_optimizer(model, lr=1.0, weight_decay=0.1)
    plan.make_optimizer(model, lr=1.0)


@pytest.mark.parametrize(
    ("name", "expected"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_make_optimizer_is_torchs_own_and_fused(name, expected):
    model = Decoder(64)
    plan = mt.parameterize(model, "mup", base=16, factory=Decoder, optimizer=name)
    optimizer = plan.make_optimizer(model, lr=2**-8, **({"momentum": 0.9} if name == "sgd" else {"betas": (0.9, 0.95)}))
    assert type(optimizer) is expected
    assert all(group["fused"] for group in optimizer.param_groups)


def test_optimizer_state_is_saved_and_loaded_by_the_same_call(model, plan):
    batch = token_batches(1)[0]
    optimizer = plan.make_optimizer(model, lr=2**-8)
    token_loss(model, batch).backward()
    optimizer.step()
    other = plan.make_optimizer(model, lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]
    assert len(other.state) == len(optimizer.state) == len(plan)


def _gradient_norm(width: int, form: str, *, stock: bool) -> float:
    torch.manual_seed(0)
    model = Decoder(width).double()
    plan = mt.parameterize(model, "mup", base=16, factory=lambda w: Decoder(w).double(), form=form)
    token_loss(model, token_batches(1)[0]).backward()
    if stock:
        return float(nn.utils.clip_grad_norm_(model.parameters(), 1e9))
    return float(plan.clip_grad_norm_(model, 1e9))


def test_the_norm_in_the_gauge_is_the_explicit_forms_and_the_stock_norm_of_the_folded_form_is_not():
    explicit = _gradient_norm(64, "explicit", stock=True)
    assert _gradient_norm(64, "explicit", stock=False) == pytest.approx(explicit, rel=1e-9)
    assert _gradient_norm(64, "folded", stock=False) == pytest.approx(explicit, rel=1e-9)
    assert _gradient_norm(64, "folded", stock=True) > 1.1 * explicit


def test_clipping_scales_all_gradients_by_one_factor(model, plan):
    token_loss(model, token_batches(1)[0]).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = plan.clip_grad_norm_(model, 0.1)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, before[name] * 0.1 / norm, rtol=1e-4, atol=1e-9)
    for wrong in (0, "1", None):
        with pytest.raises(ConfigError, match="must be a positive number"):
            plan.clip_grad_norm_(model, wrong)


def test_clipping_without_gradients_is_zero(model, plan):
    assert plan.clip_grad_norm_(model, 1.0) == 0
