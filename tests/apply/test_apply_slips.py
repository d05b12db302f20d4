"""A slip in what a plan is given for training gets one sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.errors import ConfigError

IDS = torch.ones(2, 3, dtype=torch.long)


def build(width: int, *, sparse: bool = False) -> nn.Module:
    return nn.Sequential(nn.Embedding(7, width, sparse=sparse), nn.Linear(width, width), nn.Linear(width, 3))


def converted(*, sparse: bool = False) -> tuple[nn.Module, mt.Plan]:
    model = build(64, sparse=sparse)
    plan = mt.parameterize(
        model, "mup", base=16, factory=lambda width: build(width, sparse=sparse), example_inputs=IDS, optimizer="sgd"
    )
    model(IDS).sum().backward()
    return model, plan


def test_parameters_in_place_of_the_model_are_called_that():
    model, plan = converted()
    for given, kind in (
        (model.parameters(), "generator"),
        (list(model.parameters()), "list"),
        (model[0].weight, "Par"),
    ):
        for call in (lambda m: plan.clip_grad_norm_(m, 1.0), lambda m: plan.make_optimizer(m, lr=1.0)):
            with pytest.raises(ConfigError, match=rf"a {kind}\w* has not: give the model itself in place of"):
                call(given)
    assert plan.clip_grad_norm_(model, 1.0) > 0


def test_a_sparse_gradient_cannot_be_clipped_and_leaves_the_others_alone():
    model, plan = converted(sparse=True)
    before = model[1].weight.grad.clone()
    with pytest.raises(ConfigError, match=r"gradient of '0\.weight' is sparse.*sparse=False"):
        plan.clip_grad_norm_(model, 1e-3)
    assert torch.equal(model[1].weight.grad, before)
    model[0].weight.grad = model[0].weight.grad.to_dense()
    assert plan.clip_grad_norm_(model, 1e-3) > 1e-3


def test_a_parameter_in_two_groups_or_twice_in_one_is_refused():
    model, plan = converted()
    weight, rest = model[1].weight, [p for p in model.parameters() if p is not model[1].weight]
    for groups in (
        [{"params": list(model.parameters())}, {"params": [weight], "lr": 0.5}],
        [{"params": [weight, *rest, weight]}],
        [{"params": [("1.weight", weight)]}, {"params": weight}],
    ):
        for make in (plan.param_groups, plan.make_optimizer):
            with pytest.raises(ConfigError, match=r"groups= holds '1\.weight' 2 times"):
                make(model, lr=1.0, groups=groups)
    assert plan.param_groups(model, lr=1.0, groups=[{"params": rest}, {"params": [weight], "lr": 0.5}])
