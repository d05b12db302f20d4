"""The depth rules are those of the papers and of the derivation: exponents of m typed by hand, never computed."""

from __future__ import annotations

import dataclasses

import pytest

from mutransfer.errors import RuleError
from mutransfer.rules.depth import COMPLETEP, DEPTH_MUP, WIDTH_ONLY_LAW, DepthLaw, Place
from mutransfer.rules.optimizers import find_optimizer
from mutransfer.rules.scale import m_depth, m_uses, one
from mutransfer.rules.table import Rule, find_table
from mutransfer.rules.tables import PARAMETERIZATIONS

DEPTH_TABLES = {"completep": COMPLETEP, "depth-mup": DEPTH_MUP}
COLUMNS = ("init", "multiplier", "adam.lr", "adam.eps", "adam.decay", "sgd.lr", "sgd.decay")

# Exponents of m_depth in that order. Dey et al. 2025, arXiv:2505.01618, Table 1 (explicit: hidden lr m^(alpha-1), eps
# m^-alpha, decay 1); Zheng et al. 2026, arXiv:2603.00541, Tables 3 and 9 (SGD: m at alpha = 1, 1 at alpha = 1/2).
EXPECTED = {
    "completep": {
        "outside": (0, 0, 0, 0, 0, 0, 0),
        "inner": (0, 0, 0, -1, 0, 1, -1),
        "terminal": (0, -1, 0, -1, 0, 1, -1),
        "stream norm": (0, 0, -1, 0, 1, -1, 1),
    },
    "depth-mup": {
        "outside": (0, 0, 0, 0, 0, 0, 0),
        "inner": (0, 0, -0.5, -0.5, 0, 0, 0),
        "terminal": (0, -0.5, -0.5, -0.5, 0, 0, 0),
        "stream norm": (0, 0, -1, 0, 1, -1, 1),
    },
}

# What a terminal comes to that holds the branch's multiplier itself, derived by hand: exponents of m_depth of the
# factors on init, lr, eps and decay.
FOLDED = {
    ("completep", "adamw"): (-1, -1, 0, 1),
    ("completep", "sgd"): (-1, -1, 0, 1),
    ("completep", "adam-l2"): (-1, -1, 0, 2),
    ("depth-mup", "adamw"): (-0.5, -1, 0, 0.5),
    ("depth-mup", "sgd"): (-0.5, -1, 0, 1),
    ("depth-mup", "adam-l2"): (-0.5, -1, 0, 1),
}

# (init, change): terminal, inner, norm on the stream, outside
LAWS = {"completep": ((-1, -1), (0, 0), (0, -1), (0, 0)), "depth-mup": ((-0.5, -1), (0, -0.5), (0, -1), (0, 0))}
TABLES = sorted(DEPTH_TABLES)


def exponents(row):
    adam, sgd = row.rules["adam"], row.rules["sgd"]
    cells = (row.init, row.multiplier, adam.lr, adam.eps, adam.weight_decay, sgd.lr, sgd.weight_decay)
    assert all(set(dict(cell.powers)) <= {"m_depth"} for cell in cells)
    return tuple(cell.exponent("m_depth") for cell in cells)


def wrong_cells(table):
    return {
        (place.value, column)
        for place, row in table.rows.items()
        for column, found, expected in zip(COLUMNS, exponents(row), EXPECTED[table.name][place.value], strict=True)
        if found != expected
    }


def corrupted(table, place, column):
    """The table with one cell wrong by 1/2."""
    row = table.rows[place]
    if "." not in column:
        row = dataclasses.replace(row, **{column: getattr(row, column) * m_depth**0.5})
    else:
        family, kind = column.split(".")
        field = "weight_decay" if kind == "decay" else kind
        rule = dataclasses.replace(row.rules[family], **{field: getattr(row.rules[family], field) * m_depth**0.5})
        row = dataclasses.replace(row, rules={**row.rules, family: rule})
    return dataclasses.replace(table, rows={**table.rows, place: row})


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_the_papers(name):
    assert wrong_cells(DEPTH_TABLES[name]) == set()


@pytest.mark.parametrize("name", TABLES)
def test_control_every_cell_wrong_by_a_half_is_noticed(name):
    for place in Place:
        for column in COLUMNS:
            assert wrong_cells(corrupted(DEPTH_TABLES[name], place, column)) == {(place.value, column)}


def folded(table, optimizer, m):
    """What a terminal's init, lr, eps and decay are multiplied by at depth ratio m, its multiplier folded."""
    row = table.rows[Place.TERMINAL]
    rule, c = row.rule(optimizer), row.multiplier.at(m_depth=m)
    lr, decay = (
        rule.lr.at(m_depth=m) * optimizer.lr_under(c),
        rule.weight_decay.at(m_depth=m) * optimizer.decay_under(c),
    )
    eps = rule.eps.at(m_depth=m) * optimizer.eps_under(c) if optimizer.has_eps else 1.0
    return (row.init.at(m_depth=m) * c, lr, eps, decay)


@pytest.mark.parametrize(("name", "optimizer"), sorted(FOLDED))
def test_a_folded_terminal_is_what_was_derived_by_hand(name, optimizer):
    expected = [4.0**power for power in FOLDED[name, optimizer]]
    assert folded(DEPTH_TABLES[name], find_optimizer(optimizer), 4.0) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "optimizer"), sorted(FOLDED))
def test_control_a_wrong_branch_multiplier_gives_another_folded_terminal(name, optimizer):
    broken = corrupted(DEPTH_TABLES[name], Place.TERMINAL, "multiplier")
    expected = [4.0**power for power in FOLDED[name, optimizer]]
    assert folded(broken, find_optimizer(optimizer), 4.0) != pytest.approx(expected)


@pytest.mark.parametrize("name", TABLES)
def test_an_explicit_terminal_trains_as_what_stands_in_front_of_it(name):
    rows = DEPTH_TABLES[name].rows
    assert rows[Place.TERMINAL].rules == rows[Place.INNER].rules


@pytest.mark.parametrize("name", TABLES)
def test_at_the_base_depth_every_cell_is_exactly_one(name):
    for place in Place:
        row = DEPTH_TABLES[name].rows[place]
        scales = [row.init, row.multiplier]
        scales += [scale for r in row.rules.values() for scale in (r.lr, r.eps, r.weight_decay)]
        assert all(scale.at(m_depth=1, m_uses=1) == 1.0 for scale in scales)


@pytest.mark.parametrize("name", TABLES)
def test_the_law_is_the_derived_one(name):
    law = DEPTH_TABLES[name].law
    terminal, inner, norm, outside = LAWS[name]
    expected = {Place.TERMINAL: terminal, Place.INNER: inner, Place.STREAM_NORM: norm, Place.OUTSIDE: outside}
    assert {place: (law.init[place], law.change[place]) for place in Place} == expected


def test_each_law_contradicts_the_others_by_at_least_a_half():
    laws = [table.law for table in DEPTH_TABLES.values()] + [WIDTH_ONLY_LAW]
    for i, one_law in enumerate(laws):
        for other in laws[:i]:
            gaps = [abs(one_law.init[p] - other.init[p]) + abs(one_law.change[p] - other.change[p]) for p in Place]
            assert max(gaps) >= 0.5


def test_a_shared_parameter_sums_the_gradients_of_its_uses():
    """ALBERT: m blocks use one tensor, so m_uses = m_depth, and what shrank in each adds up again."""
    row = COMPLETEP.row(Place.INNER, shared=True)
    assert row.rules["adam"] == Rule(one, m_uses / m_depth, one)
    assert row.rules["sgd"] == Rule(m_depth / m_uses, one, m_uses / m_depth)
    assert row.rules["adam"].eps.at(m_depth=4, m_uses=4) == 1.0
    assert COMPLETEP.row(Place.INNER) == COMPLETEP.rows[Place.INNER]


def test_sharing_under_depth_mup_is_refused_with_the_table_that_has_it():
    with pytest.raises(RuleError, match=r"several blocks share. Use 'completep'"):
        DEPTH_MUP.row(Place.INNER, shared=True)


def test_nothing_is_made_up_for_an_optimizer_or_a_place_without_a_rule():
    bare = dataclasses.replace(COMPLETEP.rows[Place.INNER], rules={})
    with pytest.raises(RuleError, match="no depth rule for optimizer 'sgd'"):
        bare.rule(find_optimizer("sgd"))
    rows = {place: row for place, row in COMPLETEP.rows.items() if place is not Place.STREAM_NORM}
    with pytest.raises(RuleError, match="no row for stream norm"):
        dataclasses.replace(COMPLETEP, rows=rows)
    with pytest.raises(RuleError, match="same optimizer families"):
        dataclasses.replace(COMPLETEP, rows={**COMPLETEP.rows, Place.INNER: bare})
    with pytest.raises(RuleError, match="every place"):
        DepthLaw({}, {})


def test_a_mistyped_depth_table_shows_the_nearest():
    with pytest.raises(RuleError, match="Did you mean 'completep'"):
        find_table("complete-p", PARAMETERIZATIONS)


def test_depth_rules_come_on_top_of_mups_width_rules():
    for name, depth in DEPTH_TABLES.items():
        table = PARAMETERIZATIONS[name]
        assert table.rows == PARAMETERIZATIONS["mup"].rows
        assert table.depth is depth
