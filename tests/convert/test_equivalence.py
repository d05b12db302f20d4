"""Equivalent tables, and the two forms of one table, train identically in float64; what breaks the symmetry is seen."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from toy_models import Decoder, token_batches, token_loss

import mutransfer as mt

STEPS = 50
BATCHES = token_batches(STEPS)


def build(width: int, *, tied: bool = False) -> nn.Module:
    """The same draws every time; a larger readout, so that the first gradients are clipped."""
    torch.manual_seed(0)
    model = Decoder(width, tied=tied).double()
    return model


def losses(
    table: str, form: str, optimizer: str, *, eps=1e-8, width=32, tied=False, steps=STEPS, change=lambda plan: plan,
    clip=True, hyperparameters=None,
) -> torch.Tensor:  # fmt: skip
    model = build(width, tied=tied)
    plan = mt.plan(
        model, table, base=16, factory=lambda w: build(w, tied=tied), optimizer=optimizer, form=form,
        hyperparameters=hyperparameters,
    )  # fmt: skip
    plan = change(plan)
    plan.apply(model)
    options = {"lr": 2**-3, "momentum": 0.9} if optimizer == "sgd" else {"lr": 2**-7, "eps": eps}
    opt = plan.make_optimizer(model, weight_decay=0.1 if optimizer == "adamw" else 0.01, fused=False, **options)
    seen = []
    for batch in BATCHES[:steps]:
        loss = token_loss(model, batch)
        opt.zero_grad()
        loss.backward()
        norm = plan.clip_grad_norm_(model, 0.5) if clip is True else clip(model)
        assert norm > 0.5 or len(seen) > 10, "clipping must be active for this test to say anything"
        opt.step()
        seen.append(loss.item())
    return torch.tensor(seen, dtype=torch.float64)


def furthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_tables_3_8_and_9_are_one_parameterization(optimizer):
    reference = losses("mup", "explicit", optimizer)
    for table in ("mup-table3", "mup-table9", "mean-field"):
        assert furthest(reference, losses(table, "explicit", optimizer)) <= 1e-9, table


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("table", ["mup", "mup-table3", "mup-table9", "ntk", "ntk-stable"])
def test_folded_trains_as_explicit(table, optimizer):
    assert furthest(losses(table, "folded", optimizer), losses(table, "explicit", optimizer)) <= 1e-9


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_tied_readout_folds_into_the_norm_in_front(optimizer):
    folded, explicit = (losses("mup", form, optimizer, tied=True) for form in ("folded", "explicit"))
    assert furthest(folded, explicit) <= 1e-9


def test_a_model_narrower_than_its_base_folds_too():
    folded, explicit = (losses("mup", form, "adamw", width=8) for form in ("folded", "explicit"))
    assert furthest(folded, explicit) <= 1e-9


def test_hyperparameters_mean_the_same_in_both_forms():
    own = {"output_mult": 2.0, "embedding_mult": 3.0, "lr.input": 4.0, "init_std.hidden": 0.5}
    folded, explicit = (losses("mup", form, "adamw", hyperparameters=own) for form in ("folded", "explicit"))
    assert furthest(folded, explicit) <= 1e-9
    assert furthest(folded, losses("mup", "folded", "adamw")) > 1e-2


def _unscaled(plan, field, names):
    lines = tuple(dataclasses.replace(p, **{field: 1.0}) if p.name in names else p for p in plan.params)
    return dataclasses.replace(plan, params=lines)


def test_control_an_unscaled_eps_breaks_the_symmetry():
    """eps = 1e-4 for all, in two equivalent tables: it weighs differently in each."""

    def unscale(plan):
        return _unscaled(plan, "eps", set(plan.names()))

    pair = [losses("mup", form, "adamw", eps=1e-4, change=unscale) for form in ("explicit", "folded")]
    assert furthest(*pair) > 1e-6
    scaled = [losses("mup", form, "adamw", eps=1e-4) for form in ("explicit", "folded")]
    assert furthest(*scaled) <= 1e-9


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_control_decay_that_is_not_rescaled_breaks_the_symmetry(optimizer):
    def unscale(plan):
        return _unscaled(plan, "weight_decay", set(plan.names()))

    pair = [losses("mup", form, optimizer, change=unscale) for form in ("explicit", "folded")]
    assert furthest(*pair) > 1e-6


def test_control_stock_clipping_breaks_the_symmetry():
    def stock(model):
        return nn.utils.clip_grad_norm_(model.parameters(), 0.5)

    assert furthest(losses("mup", "explicit", "sgd", clip=stock), losses("mup", "folded", "sgd", clip=stock)) > 1e-3


@pytest.mark.parametrize("table", sorted(mt.PARAMETERIZATIONS))
@pytest.mark.parametrize("form", ["folded", "explicit"])
def test_at_the_base_size_nothing_changes_bitwise(table, form):
    plain = build(16)
    model = copy.deepcopy(plain)
    plan = mt.parameterize(model, table, base=16, factory=build, form=form)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    ids = BATCHES[0][0]
    assert torch.equal(plain(ids), model(ids))
    (group,) = plan.param_groups(model, lr=0.1, weight_decay=0.2, eps=1e-6)
    assert (group["lr"], group["weight_decay"], group["eps"]) == (0.1, 0.2, 1e-6)
    assert not plan.swaps
    assert not plan.attention


def test_control_off_the_base_size_something_changes():
    plain = build(32)
    model = copy.deepcopy(plain)
    mt.parameterize(model, "mup", base=16, factory=build)
    assert not torch.equal(plain(BATCHES[0][0]), model(BATCHES[0][0]))
