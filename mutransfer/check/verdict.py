"""Slopes against the law: pass, fail or undecided, and whose fault it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mutransfer.check.flow import SoftmaxScale
from mutransfer.check.runs import Run
from mutransfer.check.slopes import MARGIN, Runs, Slope
from mutransfer.rules.optimizers import Optimizer
from mutransfer.rules.scale import Scale
from mutransfer.rules.table import Parameterization, Role

Verdict = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True)
class Softmax:
    """One attention's effective softmax scale, at the largest width over the smallest.

    Attributes:
        site: the module that attends.
        head_dims: at the two widths.
        measured, expected: the ratio read from the forward pass, and what the table says.
    """

    site: str
    head_dims: tuple[int, int]
    measured: float
    expected: float

    @property
    def holds(self) -> bool:
        return math.isclose(self.measured, self.expected, rel_tol=1e-3)


@dataclass(frozen=True)
class Culprit:
    """A tensor (or attention) that breaks the law, and what to look at."""

    name: str
    kind: Literal["init", "change", "softmax"]
    measured: float
    expected: float
    look_at: str


def judge(slopes: Sequence[Slope], softmax: Sequence[Softmax]) -> Verdict:
    """Pass when every interval lies inside the law's margin, fail when one lies wholly outside."""
    if any(not reading.holds for reading in softmax) or any(slope.status == "outside" for slope in slopes):
        return "fail"
    return "pass" if slopes and all(slope.status == "inside" for slope in slopes) else "undecided"


def culprits(slopes: Sequence[Slope], softmax: Sequence[Softmax]) -> list[Culprit]:
    """Whatever is wholly outside, the cause first.

    A wrong size at init travels forward into later contributions and changes, so if any init is outside, the farthest
    of those is the cause (of several equally far the first in execution order), and changes are consequences.
    """
    wrong = [Culprit(s.site, "softmax", s.measured, s.expected, _look_at_softmax(s)) for s in softmax if not s.holds]
    outside = [slope for slope in slopes if slope.status == "outside"]
    inits = [slope for slope in outside if slope.kind == "init"]
    changes = sorted((s for s in outside if s.kind == "change"), key=lambda s: -abs(s.off))
    if inits:
        farthest = max(abs(slope.off) for slope in inits)
        tied = [slope for slope in inits if abs(slope.off) > farthest - MARGIN]
        rest = sorted((slope for slope in inits if slope not in tied), key=lambda slope: -abs(slope.off))
        inits = [*sorted(tied, key=lambda slope: slope.order), *rest]
    ordered = [*inits, *changes]
    return wrong + [Culprit(s.name, s.kind, s.value, s.value - s.off, _look_at(s)) for s in ordered]


def _look_at(slope: Slope) -> str:
    off = slope.off
    direction = "grows" if off > 0 else "shrinks"
    nearest = round(off * 2) / 2 or math.copysign(0.5, off)
    cell = "init std or forward multiplier" if slope.kind == "init" else "learning rate"
    return (
        f"the {slope.role} row's {cell}: its own {'size at init' if slope.kind == 'init' else 'change'} {direction} "
        f"by width^{off:+.2f} against the law, about what a factor wrong by width^{nearest:+g} does"
    )


def _look_at_softmax(reading: Softmax) -> str:
    small, large = reading.head_dims
    return (
        f"the softmax scale: from head_dim {small} to {large} it changes by {reading.measured:.4g}, "
        f"and the table says {reading.expected:.4g}"
    )


def read_softmax(runs: Runs, attention: Scale) -> list[Softmax]:
    """Effective softmax scales where head_dim differs between the smallest and the largest width."""
    small, large = runs[min(runs)][0], runs[max(runs)][0]
    readings = []
    for site, scale in large.init.scales.items():
        before = small.init.scales.get(site)
        if before is None or before.head_dim == scale.head_dim:
            continue
        ratio = scale.value * _carried(large, scale) / (before.value * _carried(small, before))
        expected = attention.at(m_head=scale.head_dim / before.head_dim)
        readings.append(Softmax(site, (before.head_dim, scale.head_dim), ratio, expected))
    return readings


def _carried(run: Run, scale: SoftmaxScale) -> float:
    """The part of the softmax scale that q's projection carries, where no attribute could be set."""
    parameters = [run.init.uses[number].parameter for number in scale.sources]
    return math.prod(run.carried.get(name, 1.0) for name in parameters)


def implied(table: Parameterization, optimizer: Optimizer) -> dict[str, dict[str, float]]:
    """What the table's own cells imply for each role, for information: exponents at init and as change.

    Source: Everett et al. 2024, arXiv:2407.05872, full alignment (closed form), with multiplier width^-a, init std
    width^-b, lr width^-c and backward size width^-g, g = a + b of the readout.
    """
    output = table.rows[Role.OUTPUT]
    backward = _width_power(output.multiplier) + _width_power(output.init_std)
    exponents = {}
    for role in Role:
        row, contracts = table.rows[role], role in (Role.HIDDEN, Role.OUTPUT)
        multiplier, lr = _width_power(row.multiplier), _width_power(table.rule(role, optimizer).lr)
        through = 0.0 if role in (Role.OUTPUT, Role.SCALAR) else backward
        change = multiplier + lr + contracts + optimizer.homogeneity * (multiplier + through)
        init = multiplier + _width_power(row.init_std) + contracts / 2
        exponents[role.value] = {"init": init, "change": change}
    return exponents


def _width_power(cell: Scale) -> float:
    return cell.exponent("m_in") + cell.exponent("m_out")
