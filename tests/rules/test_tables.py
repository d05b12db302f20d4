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


WIDTH_TABLES = sorted(name for name, table in mt.PARAMETERIZATIONS.items() if table.depth is None)


@pytest.mark.parametrize("name", WIDTH_TABLES)
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


# The same tables with m_in and m_out told apart, as (power of m_in, power of m_out). The papers print m_in = m_out; by
# hand: what enters a sum has m_in, what an entry of the gradient is spread over has m_out. A role without one of them
# (input, vector: nothing contracted grows; output: nothing else does) has only the other. Decay is 1 / lr (Wang &
# Aitchison 2024); L2 inside Adam is t^-2 for a tensor stored t times as large as the gauge's. Cells not named are 1.
MUP_INPUT = {"adam.eps": (0, -1), "sgd.lr": (0, 1), "sgd.weight_decay": (0, -1)}
MUP_HIDDEN = {
    "init": (-0.5, 0),
    "adam.lr": (-1, 0),
    "adam.eps": (0, -1),
    "adam.weight_decay": (1, 0),
    "sgd.lr": (-1, 1),
    "sgd.weight_decay": (1, -1),  # as mup's MuSGD; Qiu et al. 2025, arXiv:2512.05620, Table 1
}
TABLE_9_INPUT = {
    "init": (0, -0.5),
    "multiplier": (0, 0.5),
    "adam.lr": (0, -0.5),
    "adam.eps": (0, -0.5),
    "adam.weight_decay": (0, 0.5),
    "adam-l2.weight_decay": (0, 1),
}
NTK_INPUT = {"adam.eps": (0, -0.5), "sgd.lr": (0, 0.5), "sgd.weight_decay": (0, -0.5)}
RECTANGULAR = {
    "sp": {"hidden": {"init": (-0.5, 0)}, "output": {"init": (-0.5, 0)}},
    "sp-embedding": {
        "input": {"adam.lr": (0, 1), "adam.weight_decay": (0, -1)},
        "hidden": {"init": (-0.5, 0)}, "output": {"init": (-0.5, 0)},
    },
    "ntk": {
        "hidden": {"multiplier": (-0.5, 0), "gauge": (-0.5, 0)},
        "output": {"multiplier": (-0.5, 0), "gauge": (-0.5, 0)},
    },
    # One step must move W x by Theta(1). The gradient of an entry is 1/sqrt(m_in) (its multiplier) times 1/sqrt(m_out)
    # (what reaches an output entry, where there are many); SGD adds m_in of them, Adam m_in of size one.
    "ntk-stable": {
        "input": NTK_INPUT, "vector": NTK_INPUT,
        "hidden": {
            "multiplier": (-0.5, 0), "gauge": (-0.5, 0), "adam.lr": (-0.5, 0), "adam.eps": (-0.5, -0.5),
            "adam.weight_decay": (0.5, 0), "sgd.lr": (0, 0.5), "sgd.weight_decay": (0, -0.5),
        },
        "output": {
            "multiplier": (-0.5, 0), "gauge": (-0.5, 0), "adam.lr": (-0.5, 0), "adam.eps": (-0.5, 0),
            "adam.weight_decay": (0.5, 0),
        },
    },
    # As above with 1/m_out reaching an output entry, since the readout's multiplier is 1/m_in.
    "mean-field": {
        "input": MUP_INPUT, "vector": MUP_INPUT,
        "hidden": {
            "multiplier": (-0.5, 0), "adam.lr": (-0.5, 0), "adam.eps": (-0.5, -1), "adam.weight_decay": (0.5, 0),
            "adam-l2.weight_decay": (-1, 0), "sgd.lr": (0, 1), "sgd.weight_decay": (0, -1),
        },
        "output": {
            "multiplier": (-1, 0), "gauge": (-1, 0), "adam.eps": (-1, 0), "sgd.lr": (1, 0), "sgd.weight_decay": (-1, 0),
        },
    },
    "mup": {
        "input": MUP_INPUT, "vector": MUP_INPUT, "hidden": MUP_HIDDEN,
        "output": {
            "multiplier": (-1, 0), "gauge": (-1, 0), "adam.eps": (-1, 0), "sgd.lr": (1, 0), "sgd.weight_decay": (-1, 0),
        },
    },
    "mup-table3": {
        "input": MUP_INPUT, "vector": MUP_INPUT, "hidden": MUP_HIDDEN,
        "output": {
            "init": (-1, 0), "gauge": (-1, 0), "adam.lr": (-1, 0), "adam.weight_decay": (1, 0),
            "adam-l2.weight_decay": (2, 0), "sgd.lr": (-1, 0), "sgd.weight_decay": (1, 0),
        },
    },
    "mup-table9": {
        "input": TABLE_9_INPUT, "vector": TABLE_9_INPUT, "constant": MUP_INPUT, "hidden": MUP_HIDDEN,
        "output": {
            "init": (-0.5, 0), "multiplier": (-0.5, 0), "gauge": (-1, 0), "adam.lr": (-0.5, 0), "adam.eps": (-0.5, 0),
            "adam.weight_decay": (0.5, 0), "adam-l2.weight_decay": (1, 0),
        },
    },
}  # fmt: skip
EQUIVALENT_MUTANTS = {("ntk-stable", "hidden", "eps"): "an entry's gradient shrinks alike with both of its sides"}


def cells(table):
    """(role, column) -> the cell."""
    rows = {role.value: row for role, row in table.rows.items()}
    if table.constant_vector is not None:
        rows["constant"] = table.constant_vector
    found = {(role.value, "gauge"): scale for role, scale in table.gauge.items()}
    for role, row in rows.items():
        found |= {(role, "init"): row.init_std, (role, "multiplier"): row.multiplier}
        for family, rule in row.rules.items():
            found |= {(role, f"{family}.{f.name}"): getattr(rule, f.name) for f in dataclasses.fields(rule)}
    return found


def expected_powers(name, role, column):
    """Adam with L2 inside has AdamW's lr and eps: they do not ask what the gradient is made of."""
    powers = RECTANGULAR[name].get(role, {})
    column = column if column in powers or not column.endswith((".lr", ".eps")) else column.replace("adam-l2", "adam")
    return powers.get(column, (0, 0))


def is_expected(name, role, column, cell):
    return (cell.exponent("m_in"), cell.exponent("m_out")) == expected_powers(name, role, column)


def swapped(cell):
    names = {"m_in": "m_out", "m_out": "m_in"}
    return Scale(tuple((names.get(symbol, symbol), power) for symbol, power in cell.powers))


@pytest.mark.parametrize("name", WIDTH_TABLES)
def test_every_cell_tells_fan_in_from_fan_out(name):
    found = cells(mt.PARAMETERIZATIONS[name])
    assert [at for at, cell in found.items() if not is_expected(name, *at, cell)] == []
    named = {(role, column) for role, row in RECTANGULAR[name].items() for column in row}
    assert named <= set(found), "an expectation of a cell that no table has says nothing"


@pytest.mark.parametrize("name", WIDTH_TABLES)
def test_control_a_cell_with_fan_in_and_fan_out_swapped_is_noticed(name):
    """Every single one, but for those that the swap does not change."""
    mutants = {at: swapped(cell) for at, cell in cells(mt.PARAMETERIZATIONS[name]).items() if cell.powers}
    assert mutants
    for (role, column), mutant in mutants.items():
        equivalent = (name, role, column.rpartition(".")[2]) in EQUIVALENT_MUTANTS
        assert is_expected(name, role, column, mutant) == equivalent, (role, column)


@pytest.mark.parametrize("name", WIDTH_TABLES)
def test_the_rectangular_expectations_are_the_papers_on_the_square(name):
    columns = {"init": "init", "multiplier": "multiplier", "adam": "adam.lr", "eps": "adam.eps", "sgd": "sgd.lr"}
    for printed, column in columns.items():
        if PAPER[name][printed] is not None:
            assert tuple(sum(expected_powers(name, role, column)) for role in ROLES) == PAPER[name][printed], column


@pytest.mark.parametrize("name", WIDTH_TABLES)
def test_lr_times_decay_is_constant_in_width(name):
    for row in mt.PARAMETERIZATIONS[name].rows.values():
        for family in ("adam", "sgd"):
            if family in row.rules:
                rule = row.rules[family]
                assert value(rule.lr * rule.weight_decay) == 1


@pytest.mark.parametrize("name", WIDTH_TABLES)
def test_decay_inside_adams_gradient_is_constant_in_the_familys_gauge(name):
    """abc-symmetry (Yang & Hu et al. 2022, Lemma J.1): stored t times as large, L2 in the gradient folds with t^-2."""
    table = mt.PARAMETERIZATIONS[name]
    for role in Role:
        for constant in (False, True):
            stored = table.gauge_of(role, constant=constant) / table.row(role, constant=constant).multiplier
            assert table.rule(role, find_optimizer("adam-l2"), constant=constant).weight_decay == stored**-2, role


@pytest.mark.parametrize("name", WIDTH_TABLES)
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


def test_a_changed_cell_changes_nothing_else():
    mup, table_9 = mt.PARAMETERIZATIONS["mup"], mt.PARAMETERIZATIONS["mup-table9"]
    changed = mup.with_cell(Role.HIDDEN, "lr", lambda cell: cell * m_in**0.5, family="adam")
    expected = dict(cells(mup)) | {("hidden", "adam.lr"): m_in**-0.5}
    assert cells(changed) == expected
    changed = table_9.with_cell(Role.VECTOR, "multiplier", lambda cell: cell * m_out)
    assert cells(changed) == dict(cells(table_9)) | {
        ("vector", "multiplier"): m_out**1.5,
        ("constant", "multiplier"): m_out,
    }


@pytest.mark.parametrize(("cell", "family"), [("lr", None), ("init_std", "adam"), ("rules", None), ("lr", "lion")])
def test_a_cell_that_does_not_exist_cannot_be_changed(cell, family):
    with pytest.raises(RuleError, match=f"'mup' has no cell '{cell}' of .* there are lr, eps and weight_decay"):
        mt.PARAMETERIZATIONS["mup"].with_cell(Role.HIDDEN, cell, lambda cell: cell, family=family)


def test_a_missing_column_is_an_error_and_never_sp():
    table = mt.PARAMETERIZATIONS["sp-embedding"]
    with pytest.raises(
        RuleError, match="no rule for optimizer 'sgd'; it is defined for: adam, adamw, adam-l2\\. Choose"
    ):
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
