"""The tables are the papers': exponents typed from the paper at m_in = m_out = m, never computed from the code."""

from __future__ import annotations

import dataclasses

import pytest

import mutransfer as mt
from mutransfer.errors import RuleError
from mutransfer.rules.optimizers import OPTIMIZERS, find_optimizer
from mutransfer.rules.scale import Scale, m_in, m_out, one
from mutransfer.rules.table import Law, Role, find_table

M = 2.0
ROLES = ("input", "hidden", "output", "vector", "scalar")

# Exponents of m for (input, hidden, output, vector, scalar).
PAPER = {
    # Yang & Hu et al. 2022, arXiv:2203.03466, Table 8
    "mup": {
        "init": (0, -0.5, 0, 0, 0), "multiplier": (0, 0, -1, 0, 0),
        "adam": (0, -1, 0, 0, 0), "eps": (-1, -1, -1, -1, 0), "sgd": (1, 0, 1, 1, 0),
    },
    # Table 3
    "mup-table3": {
        "init": (0, -0.5, -1, 0, 0), "multiplier": (0, 0, 0, 0, 0),
        "adam": (0, -1, -1, 0, 0), "eps": (-1, -1, 0, -1, 0), "sgd": (1, 0, -1, 1, 0),
    },
    # Table 9
    "mup-table9": {
        "init": (-0.5, -0.5, -0.5, -0.5, 0), "multiplier": (0.5, 0, -0.5, 0.5, 0),
        "adam": (-0.5, -1, -0.5, -0.5, 0), "eps": (-0.5, -1, -0.5, -0.5, 0), "sgd": (0, 0, 0, 0, 0),
    },
    # the same tables, in parentheses
    "sp": {
        "init": (0, -0.5, -0.5, 0, 0), "multiplier": (0, 0, 0, 0, 0),
        "adam": (0, 0, 0, 0, 0), "eps": (0, 0, 0, 0, 0), "sgd": (0, 0, 0, 0, 0),
    },
    # Kalra & Barkeshli 2026, arXiv:2605.21486
    "sp-embedding": {
        "init": (0, -0.5, -0.5, 0, 0), "multiplier": (0, 0, 0, 0, 0),
        "adam": (1, 0, 0, 0, 0), "eps": (0, 0, 0, 0, 0), "sgd": None,
    },
    # Everett et al. 2024, arXiv:2407.05872: (a, b) per layer and, for the stable one, LR ~ n^-c at full alignment
    "ntk": {
        "init": (0, 0, 0, 0, 0), "multiplier": (0, -0.5, -0.5, 0, 0),
        "adam": (0, 0, 0, 0, 0), "eps": (0, 0, 0, 0, 0), "sgd": (0, 0, 0, 0, 0),
    },
    "ntk-stable": {
        "init": (0, 0, 0, 0, 0), "multiplier": (0, -0.5, -0.5, 0, 0),
        "adam": (0, -0.5, -0.5, 0, 0), "eps": (-0.5, -1, -0.5, -0.5, 0), "sgd": (0.5, 0.5, 0, 0.5, 0),
    },
    "mean-field": {
        "init": (0, 0, 0, 0, 0), "multiplier": (0, -0.5, -1, 0, 0),
        "adam": (0, -0.5, 0, 0, 0), "eps": (-1, -1.5, -1, -1, 0), "sgd": (1, 1, 1, 1, 0),
    },
}  # fmt: skip


def value(scale: Scale) -> float:
    return scale.at(m_in=M, m_out=M)


def powers(exponents):
    return pytest.approx([M**e for e in exponents])


@pytest.mark.parametrize("name", sorted(mt.PARAMETERIZATIONS))
def test_every_cell_is_the_papers(name):
    table, paper = mt.PARAMETERIZATIONS[name], PAPER[name]
    rows = [table.rows[Role(role)] for role in ROLES]
    assert [value(row.init_std) for row in rows] == powers(paper["init"])
    assert [value(row.multiplier) for row in rows] == powers(paper["multiplier"])
    assert [value(row.rules["adam"].lr) for row in rows] == powers(paper["adam"])
    assert [value(row.rules["adam"].eps) for row in rows] == powers(paper["eps"])
    if paper["sgd"] is None:
        assert "sgd" not in table.families
    else:
        assert [value(row.rules["sgd"].lr) for row in rows] == powers(paper["sgd"])


def test_a_hidden_matrix_has_its_own_ratio_on_each_side():
    """The papers print m_in = m_out; a feed-forward layer has not (mup's MuSGD uses m_out / m_in too)."""
    hidden = mt.PARAMETERIZATIONS["mup"].rows[Role.HIDDEN]
    assert hidden.rules["adam"].lr.at(m_in=8, m_out=4) == 1 / 8
    assert hidden.rules["adam"].eps.at(m_in=8, m_out=4) == 1 / 4
    assert hidden.rules["sgd"].lr.at(m_in=8, m_out=4) == 1 / 2
    assert hidden.init_std.at(m_in=4, m_out=100) == 1 / 2


@pytest.mark.parametrize("name", sorted(mt.PARAMETERIZATIONS))
def test_lr_times_decay_is_constant_in_width(name):
    for row in mt.PARAMETERIZATIONS[name].rows.values():
        for family in ("adam", "sgd"):
            if family in row.rules:
                rule = row.rules[family]
                assert value(rule.lr * rule.weight_decay) == 1


@pytest.mark.parametrize("name", sorted(mt.PARAMETERIZATIONS))
def test_at_the_base_every_cell_is_exactly_one(name):
    table = mt.PARAMETERIZATIONS[name]
    cells = [table.attention, *table.gauge.values()]
    for row in table.rows.values():
        cells += [row.init_std, row.multiplier]
        cells += [cell for rule in row.rules.values() for cell in (rule.lr, rule.eps, rule.weight_decay)]
    assert all(cell.at(m_in=1, m_out=1, m_head=1) == 1.0 for cell in cells)


def test_attention_is_one_over_head_dim_under_mup_and_its_root_under_sp():
    """Yang & Hu et al. 2022, Definition 4.1."""
    assert mt.PARAMETERIZATIONS["mup"].attention.at(m_head=4) == 1 / 4
    assert mt.PARAMETERIZATIONS["sp"].attention.at(m_head=4) == 1 / 2


@pytest.mark.parametrize("name", ["mup", "mup-table3", "mup-table9", "mean-field"])
def test_the_law_of_mup_is_flat_but_for_the_readout_at_init(name):
    law = mt.PARAMETERIZATIONS[name].law
    assert {role.value: e for role, e in law.init.items()} == dict.fromkeys(ROLES, 0.0) | {"output": -0.5}
    assert set(law.change.values()) == {0.0}


def test_a_row_too_few_is_refused():
    rows = dict(mt.PARAMETERIZATIONS["mup"].rows)
    del rows[Role.SCALAR]
    with pytest.raises(RuleError, match="no row for scalar"):
        dataclasses.replace(mt.PARAMETERIZATIONS["mup"], rows=rows)


def test_a_row_without_an_optimizer_that_others_have_is_refused():
    mup = mt.PARAMETERIZATIONS["mup"]
    bare = dataclasses.replace(mup.rows[Role.SCALAR], rules={"adam": mup.rows[Role.SCALAR].rules["adam"]})
    with pytest.raises(RuleError, match="same optimizer families"):
        dataclasses.replace(mup, rows={**mup.rows, Role.SCALAR: bare})


def test_a_law_must_speak_of_every_role():
    with pytest.raises(RuleError, match="law must state"):
        dataclasses.replace(mt.PARAMETERIZATIONS["mup"], law=Law({Role.INPUT: 0.0}))


def test_a_missing_column_is_an_error_and_never_sp():
    table = mt.PARAMETERIZATIONS["sp-embedding"]
    with pytest.raises(RuleError, match="no rule for optimizer 'sgd'; it is defined for: adam"):
        table.rule(Role.INPUT, find_optimizer("sgd"))


@pytest.mark.parametrize(("given", "meant"), [("mupp", "mup"), ("mean_field", "mean-field")])
def test_a_mistyped_parameterization_shows_the_nearest(given, meant):
    with pytest.raises(RuleError, match=f"Did you mean .*'{meant}'"):
        find_table(given, mt.PARAMETERIZATIONS)


def test_an_unknown_optimizer_without_a_rule_raises():
    with pytest.raises(RuleError, match="no rule for optimizer 'lion'"):
        find_optimizer("lion")
    assert set(OPTIMIZERS) >= {"sgd", "adam", "adamw"}


def test_scales_multiply_divide_print_and_refuse_constants():
    assert str(m_out / m_in) == "m_in^-1 m_out"
    assert str(m_in / m_in) == "1"
    assert m_in * m_in**-1 == one
    assert hash(1 / m_in) == hash(m_in**-1)
    with pytest.raises(ValueError, match="no constants"):
        2 / m_in
    with pytest.raises(ValueError, match="Unknown size ratio"):
        Scale((("width", 1.0),))
