"""The two forms of a depth table train alike: the multiplier in the terminal, or at the add. In float64."""

from __future__ import annotations

import copy

import pytest
import residual_models as zoo
import torch
from torch.nn import functional

from mutransfer.planning.branches import find_branches, repeating
from mutransfer.planning.layers import with_declared_uses
from mutransfer.planning.places import assign_places
from mutransfer.planning.templates import Templates
from mutransfer.planning.trace import trace
from mutransfer.rules.depth import COMPLETEP, DEPTH_MUP, Place
from mutransfer.rules.optimizers import find_optimizer

BASE, DEPTH, STEPS, DECAY, EPS = 2, 6, 20, 0.1, 1e-6
ENDS = {zoo.Sandwich: ("after1", "after2")} | dict.fromkeys(
    (zoo.PreNorm, zoo.PostNorm, zoo.Parallel), ("attention", "mlp")
)


def pair(block):
    torch.manual_seed(0)
    return [zoo.Stack(block, depth).double().eval() for depth in (BASE, DEPTH)]


def places(base, model):
    """Parameter -> place, and the gains that are offset."""
    templates = Templates.between(dict(base.named_parameters()), dict(model.named_parameters()))
    traced = with_declared_uses(trace(model, zoo.ids()), model)
    repeated = repeating(find_branches(trace(base, zoo.ids())), find_branches(traced), templates)
    return assign_places(traced, repeated, templates), frozenset().union(*(b.offset for b in repeated))


def folded_places(found, offset):
    ends = {name: Place.OFFSET if name in offset else Place.FOLDED for name, p in found.items() if p is Place.TERMINAL}
    return found | ends


def fold(model, found, table):
    for name, parameter in model.named_parameters():
        c = table.rows[found[name]].init.at(m_depth=DEPTH / BASE)
        with torch.no_grad():
            parameter.copy_(c * (1 + parameter) - 1 if found[name] is Place.OFFSET else c * parameter)


def multiply(model, block, c):
    for layer in model.blocks:
        for end in ENDS[block]:
            getattr(layer, end).register_forward_hook(lambda _module, _args, out: out * c)


def train(model, found, table, optimizer, offset, *, without=None):
    """The losses; `without` leaves one column of the table out for terminals, or the clipping weights."""
    groups, weights = [], {}
    for name, parameter in model.named_parameters():
        row = table.rows[found[name]]
        rule, m = row.rule(find_optimizer(optimizer)), {"m_depth": DEPTH / BASE}
        left_out = without if found[name] is Place.FOLDED else None
        decay = 0.0 if name in offset else DECAY * (1.0 if left_out == "decay" else rule.weight_decay.at(**m))
        weights[name] = 1.0 if left_out == "clip" else row.clip.at(**m)
        group = {"params": [parameter], "lr": 0.02 * rule.lr.at(**m), "weight_decay": decay}
        if optimizer == "adamw":
            group["eps"] = EPS * (m["m_depth"] if left_out == "eps" else rule.eps.at(**m))
        groups.append(group)
    stepper = torch.optim.AdamW(groups) if optimizer == "adamw" else torch.optim.SGD(groups, momentum=0.9, lr=0.0)
    losses = []
    for _ in range(STEPS):
        loss = functional.cross_entropy(model(*zoo.ids()).flatten(0, 1), torch.arange(10) % 5)
        stepper.zero_grad()
        loss.backward()
        clip(model, weights)
        stepper.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def clip(model, weights, most=0.05):
    gradients = [(weights[name], p.grad) for name, p in model.named_parameters() if p.grad is not None]
    norm = torch.stack([(w * g).norm() for w, g in gradients]).norm()
    assert norm > most, "else clipping is not tested"
    for _, g in gradients:
        g *= most / norm


def difference(block, table, optimizer, **folded_options):
    base, explicit = pair(block)
    folded = copy.deepcopy(explicit)
    found, offset = places(base, explicit)
    assert set(found.values()) >= {Place.TERMINAL, Place.INNER, Place.OUTSIDE}
    multiply(explicit, block, table.rows[Place.TERMINAL].multiplier.at(m_depth=DEPTH / BASE))
    stored = folded_places(found, offset)
    fold(folded, stored, table)
    losses = train(explicit, found, table, optimizer, offset)
    others = train(folded, stored, table, optimizer, offset, **folded_options)
    assert losses[-1] != losses[0]
    return ((losses - others).abs() / losses.abs()).max().item()


@pytest.mark.parametrize("block", [zoo.PreNorm, zoo.PostNorm, zoo.Sandwich, zoo.Parallel], ids=lambda b: b.__name__)
@pytest.mark.parametrize("table", [COMPLETEP, DEPTH_MUP], ids=lambda table: table.name)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_folded_and_explicit_train_alike(block, table, optimizer):
    assert difference(block, table, optimizer) < 1e-9


@pytest.mark.parametrize("left_out", ["eps", "decay", "clip"])
def test_control_they_do_not_where_one_column_is_left_out(left_out):
    assert difference(zoo.PreNorm, COMPLETEP, "adamw", without=left_out) > 1e-7
