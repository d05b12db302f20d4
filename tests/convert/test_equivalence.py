"""Equivalent tables, and the two forms of one table, train identically in float64; what breaks the symmetry is seen."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from toy_models import Attending, Convolutional, Decoder, Experts, Recurrent, SharedWeight, token_batches, token_loss

import mutransfer as mt
from mutransfer.rules.optimizers import OPTIMIZERS
from mutransfer.rules.scale import Scale, m_in, m_out

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
    return trained(model, change(plan), BATCHES[:steps], token_loss, eps=eps, clip=clip)


def trained(model, plan, batches, loss_of, *, eps=1e-8, clip=True) -> torch.Tensor:
    """The losses of a model of which the plan is not applied yet, with clipping and decay active."""
    plan.apply(model)
    optimizer = plan.optimizer
    options = {"lr": 2**-3, "momentum": 0.9} if optimizer == "sgd" else {"lr": 2**-7, "eps": eps}
    opt = plan.make_optimizer(model, weight_decay=0.1 if optimizer == "adamw" else 0.01, fused=False, **options)
    seen = []
    for batch in batches:
        loss = loss_of(model, batch)
        opt.zero_grad()
        loss.backward()
        norm = plan.clip_grad_norm_(model, 0.5) if clip is True else clip(model)
        assert norm > 0.5 or len(seen) > 10, "clipping must be active for this test to say anything"
        opt.step()
        seen.append(loss.item())
    return torch.tensor(seen, dtype=torch.float64)


def furthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("optimizer", ["adamw", "adam-l2", "sgd"])
def test_tables_3_8_and_9_are_one_parameterization(optimizer):
    reference = losses("mup", "explicit", optimizer)
    for table in ("mup-table3", "mup-table9", "mean-field"):
        assert furthest(reference, losses(table, "explicit", optimizer)) <= 1e-9, table


def _swapped(table: mt.Parameterization, column: str, family: str | None) -> mt.Parameterization:
    """The table with m_in and m_out swapped in one of its hidden cells."""

    def swap(cell: Scale) -> Scale:
        return m_out ** cell.exponent("m_in") * m_in ** cell.exponent("m_out")

    return table.with_cell(mt.Role.HIDDEN, column, swap, family=family)


SWAPS = [
    ("mup-table3", "init_std", "adamw"), ("mup-table3", "lr", "adamw"), ("mup-table3", "eps", "adamw"),
    ("mup-table3", "weight_decay", "adamw"), ("mup-table3", "lr", "sgd"), ("mup-table3", "weight_decay", "sgd"),
    ("mean-field", "multiplier", "adamw"), ("mean-field", "lr", "adamw"), ("mean-field", "eps", "adamw"),
    ("mean-field", "weight_decay", "adamw"), ("mean-field", "weight_decay", "adam-l2"), ("mean-field", "lr", "sgd"),
    ("mean-field", "weight_decay", "sgd"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "column", "optimizer"), SWAPS)
def test_control_a_cell_that_takes_fan_in_for_fan_out_breaks_the_symmetry(table, column, optimizer):
    """The decoder's feed-forward layers are where m_in and m_out differ."""
    right = mt.PARAMETERIZATIONS[table]
    per_family = column not in ("init_std", "multiplier")
    wrong = _swapped(right, column, OPTIMIZERS[optimizer].family if per_family else None)
    reference, same, other = (losses(t, "explicit", optimizer, eps=1e-4, steps=6) for t in ("mup", right, wrong))
    assert furthest(reference, same) <= 1e-9
    assert furthest(reference, other) > 1e-6


@pytest.mark.parametrize("optimizer", ["adamw", "adam-l2", "sgd"])
@pytest.mark.parametrize("table", ["mup", "mup-table3", "mup-table9", "ntk", "ntk-stable"])
def test_folded_trains_as_explicit(table, optimizer):
    assert furthest(losses(table, "folded", optimizer), losses(table, "explicit", optimizer)) <= 1e-9


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_tied_readout_folds_into_the_norm_in_front(optimizer):
    folded, explicit = (losses("mup", form, optimizer, tied=True) for form in ("folded", "explicit"))
    assert furthest(folded, explicit) <= 1e-9


ARCHITECTURES = {
    "a weight shared by two layers": (SharedWeight, (4, 6, 5)),
    "a convolutional net": (Convolutional, (4, 3, 8, 8)),
    "an LSTM": (Recurrent, (4, 6, 5)),
    "nn.MultiheadAttention": (Attending, (4, 6, 5)),
    "experts in 3-D tensors": (Experts, (4, 6, 5)),
}


def regression_losses(architecture: str, table: str, form: str, optimizer: str, change=lambda plan: plan):
    kind, shape = ARCHITECTURES[architecture]
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(20, *shape, generator=generator, dtype=torch.float64)
    ys = torch.randn(20, 7, generator=generator, dtype=torch.float64) * 10

    def make(width: int) -> nn.Module:
        torch.manual_seed(0)
        return kind(width).double()

    model = make(32)
    plan = mt.plan(model, table, base=16, factory=make, optimizer=optimizer, form=form, example_inputs=xs[0])
    pairs = list(zip(xs, ys, strict=True))
    return trained(model, change(plan), pairs, lambda model, pair: (model(pair[0]) - pair[1]).square().mean())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_all_forms_of_mup_train_alike_whatever_the_architecture(architecture, optimizer):
    reference = regression_losses(architecture, "mup", "explicit", optimizer)
    for table, form in (
        ("mup", "folded"),
        ("mup-table3", "explicit"),
        ("mup-table9", "explicit"),
        ("mean-field", "explicit"),
    ):
        seen = regression_losses(architecture, table, form, optimizer)
        assert furthest(reference, seen) <= 1e-9, (table, form)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_control_one_lr_off_by_one_size_ratio_is_another_training(architecture):
    def spoil(plan):
        name = next(line.name for line in plan if line.role is mt.Role.INPUT)
        lines = [dataclasses.replace(p, lr=p.lr * p.m_out) if p.name == name else p for p in plan.params]
        return dataclasses.replace(plan, params=tuple(lines))

    pair = [regression_losses(architecture, "mup", "folded", "adamw", change) for change in (lambda plan: plan, spoil)]
    assert furthest(*pair) > 1e-6


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


@pytest.mark.parametrize("optimizer", ["adamw", "adam-l2", "sgd"])
def test_control_decay_that_is_not_rescaled_breaks_the_symmetry(optimizer):
    def unscale(plan):
        return _unscaled(plan, "weight_decay", set(plan.names()))

    pair = [losses("mup", form, optimizer, change=unscale) for form in ("explicit", "folded")]
    assert furthest(*pair) > 1e-6


def test_control_stock_clipping_breaks_the_symmetry():
    def stock(model):
        return nn.utils.clip_grad_norm_(model.parameters(), 0.5)

    assert furthest(losses("mup", "explicit", "sgd", clip=stock), losses("mup", "folded", "sgd", clip=stock)) > 1e-3


@pytest.mark.parametrize("table", sorted(name for name, table in mt.PARAMETERIZATIONS.items() if table.depth is None))
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
