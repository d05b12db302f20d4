"""Eps and weight decay, read off the optimizer's groups at two sizes: exact, with no training.

Where a tensor is stored t times as large its gradient is divided by t, so lr * eps and lr * decay are the same in all
forms of a parameterization. They are what is compared, in hand-written code too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mutransfer.check.axes import Axis, DepthAxis, Runs
from mutransfer.check.runs import Run, Settings
from mutransfer.check.shadow import Use
from mutransfer.rules.depth import Place
from mutransfer.rules.optimizers import Optimizer
from mutransfer.rules.scale import Scale, m_in, m_out, one
from mutransfer.rules.table import Parameterization, Role
from mutransfer.rules.tables import MUP_GAUGE

SettingKind = Literal["eps", "decay"]
Products = Mapping[SettingKind, float]

MUP_LR_EPS: Mapping[Role, Scale] = {
    Role.INPUT: 1 / m_out,
    Role.HIDDEN: 1 / (m_in * m_out),
    Role.OUTPUT: 1 / m_in,
    Role.VECTOR: 1 / m_out,
    Role.SCALAR: one,
}
"""Typed from Yang & Hu et al. 2022, arXiv:2203.03466, Table 8, with eps as the gradient; of all forms of muP alike. Its
lr * decay is constant."""


@dataclass(frozen=True)
class Setting:
    """One parameter's lr * eps or lr * decay, at the largest size over the smallest.

    Attributes:
        name: of the parameter, at the largest size; `pooled` is the name that its blocks share.
        group: the row of the table that it is held to.
        kind: "eps" or "decay".
        measured, expected: the ratio in the optimizer's groups, and what the table says.
    """

    name: str
    pooled: str
    group: str
    kind: SettingKind
    measured: float
    expected: float

    @property
    def holds(self) -> bool:
        return math.isclose(self.measured, self.expected, rel_tol=1e-6)


@dataclass(frozen=True)
class _Pair:
    """A parameter of the largest size, the first one of the smallest that is pooled with it, and their uses."""

    name: str
    partner: str
    large: list[Use]
    small: list[Use]
    blocks: float

    @property
    def m_uses(self) -> float:
        return len(self.large) / len(self.small)


def read_settings(
    runs: Runs, axis: Axis, table: Parameterization, optimizer: Optimizer, groups: Mapping[int, Mapping[str, Settings]]
) -> list[Setting]:
    """Every parameter of the largest size against one of the smallest.

    Args:
        groups: smallest and largest size -> parameter -> what the optimizer's groups say of it.
    """
    readings: list[Setting] = []
    for pair in _pairs(runs, axis):
        before, after = groups[min(runs)].get(pair.partner), groups[max(runs)].get(pair.name)
        if before is None or after is None:
            continue  # frozen
        group = axis.claim(_main(pair.small), _main(pair.large), tied=False).group
        if isinstance(group, Role):
            expected = _in_width(group, pair, table, optimizer)
        else:
            expected = _in_depth(group, pair, axis, optimizer)
        pooled, measured = axis.pooled(pair.name), _measured(before, after, optimizer)
        readings += [Setting(pair.name, pooled, str(group), kind, ratio, expected[kind]) for kind, ratio in measured]
    return readings


def _pairs(runs: Runs, axis: Axis) -> Iterator[_Pair]:
    small, large = (_by_parameter(runs[size][0]) for size in (min(runs), max(runs)))
    counts = [Counter(map(axis.pooled, uses)) for uses in (small, large)]
    partners = {axis.pooled(name): name for name in reversed(small)}
    for name, uses in large.items():
        pooled = axis.pooled(name)
        if pooled in partners:
            blocks = counts[1][pooled] / counts[0][pooled]
            yield _Pair(name, partners[pooled], uses, small[partners[pooled]], blocks)


def _main(uses: Sequence[Use]) -> Use:
    """The use that its row of the table is for: a recurrent matrix meets a state of zeros before it contracts one, and
    an embedding that is read out too is an embedding."""
    return uses[0] if uses[0].lookup else max(uses, key=lambda use: use.fan_in)


def _by_parameter(run: Run) -> dict[str, list[Use]]:
    found: dict[str, list[Use]] = {}
    for use in run.init.uses:
        found.setdefault(use.parameter, []).append(use)
    return found


def _measured(before: Settings, after: Settings, optimizer: Optimizer) -> Iterator[tuple[SettingKind, float]]:
    """Ratios of what is set at both sizes. Decay inside Adam's gradient has no such product."""
    if before.eps and after.eps:
        yield "eps", after.lr * after.eps / (before.lr * before.eps)
    if optimizer.family != "adam-l2" and before.weight_decay and after.weight_decay:
        yield "decay", after.lr * after.weight_decay / (before.lr * before.weight_decay)


def _in_width(role: Role, pair: _Pair, table: Parameterization, optimizer: Optimizer) -> Products:
    """What is typed for muP and its forms; another table is taken at its word."""
    small, large = _main(pair.small), _main(pair.large)
    ratios = {"m_in": large.fan_in / small.fan_in, "m_out": large.fan_out / small.fan_out}
    if dict(table.gauge) == MUP_GAUGE:
        return {"eps": MUP_LR_EPS[role].at(**ratios), "decay": 1.0}
    rule = table.rule(role, optimizer)
    return {"eps": (rule.lr * rule.eps).at(**ratios), "decay": (rule.lr * rule.weight_decay).at(**ratios)}


def _in_depth(place: Place, pair: _Pair, axis: Axis, optimizer: Optimizer) -> Products:
    """Derived: an entry's step times its gradient is its share of a change of the loss, which every one of m blocks has
    1/m of; a parameter of several blocks has a share for each use. lr * decay is constant but where the papers let
    Adam's decay alone while its lr falls (Dey et al. 2025, arXiv:2505.01618, Table 1)."""
    if place is Place.OUTSIDE:
        return {"eps": 1.0, "decay": 1.0}
    m = pair.blocks * pair.m_uses
    inner = axis.law.change[Place.INNER] if isinstance(axis, DepthAxis) else 0.0
    decay = inner if optimizer.family == "adam" and place is not Place.STREAM_NORM else 0.0
    return {"eps": pair.m_uses / m, "decay": m**decay}
