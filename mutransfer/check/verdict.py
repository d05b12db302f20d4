"""Slopes against the law: pass, fail or undecided, and whose fault it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mutransfer.check.axes import MARGIN, AxisName, Runs
from mutransfer.check.blocks import OddBlock
from mutransfer.check.flow import SoftmaxScale
from mutransfer.check.runs import Run
from mutransfer.check.settings import Setting
from mutransfer.check.slopes import Slope
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
class Findings:
    """What a check measured, to be judged as a whole.

    Attributes:
        slopes: exponents of own contributions; those with a law are judged.
        softmax: effective softmax scales, where head_dim grows.
        settings: eps and weight decay in the optimizer's groups.
        odd: single blocks that are unlike their neighbours.
        axis: what varies.
    """

    slopes: Sequence[Slope]
    softmax: Sequence[Softmax] = ()
    settings: Sequence[Setting] = ()
    odd: Sequence[OddBlock] = ()
    axis: AxisName = "width"

    @property
    def judged(self) -> list[Slope]:
        return [slope for slope in self.slopes if slope.law is not None]

    @property
    def verdict(self) -> Verdict:
        """Pass when every interval lies inside the law's margin, fail when one lies wholly outside."""
        exact = all(scale.holds for scale in self.softmax) and all(setting.holds for setting in self.settings)
        if not exact or self.odd or any(slope.status == "outside" for slope in self.judged):
            return "fail"
        return "pass" if self.judged and all(slope.status == "inside" for slope in self.judged) else "undecided"


@dataclass(frozen=True)
class Culprit:
    """A tensor (or attention) that breaks the law, and what to look at."""

    name: str
    kind: Literal["init", "change", "softmax", "eps", "decay"]
    measured: float
    expected: float
    look_at: str


def culprits(found: Findings) -> list[Culprit]:
    """Whatever is wholly outside, the cause first.

    A wrong size at init travels forward into later contributions and changes, so if any init is outside, the farthest
    of those is the cause (of several equally far the first in execution order that is wrong in the first block of its
    stack too), and changes that are no farther are consequences. A wrong lr shows in lr * eps and lr * decay too, so
    they come after it, and each row of the table once. Along a stack that follows no law blocks drift apart, so a
    single one is only named where nothing else is.
    """
    wrong = [
        Culprit(s.site, "softmax", s.measured, s.expected, _look_at_softmax(s)) for s in found.softmax if not s.holds
    ]
    outside = [slope for slope in found.judged if slope.status == "outside"]
    ordered = _cause_first(outside)
    wrong += [Culprit(s.name, s.kind, s.value, s.value - s.off, _look_at(s, found.axis)) for s in ordered]
    wrong += [Culprit(o.name, o.kind, o.octaves, 0.0, _look_at_block(o)) for o in found.odd if not outside]
    return wrong + [Culprit(n, s.kind, s.measured, s.expected, _look_at_setting(s)) for n, s in _wrong(found.settings)]


def _cause_first(outside: Sequence[Slope]) -> list[Slope]:
    """Behind the cause the farthest come first, in steps of 1/2, which is what a wrong exponent moves by."""
    inits = [slope for slope in outside if slope.kind == "init"]
    if not inits:
        return sorted(outside, key=lambda slope: -abs(slope.off))
    farthest = max(abs(slope.off) for slope in inits)
    near = [slope for slope in inits if abs(slope.off) > farthest - MARGIN]
    cause = min([s for s in near if _is_wrong_in_first(s)] or near, key=lambda slope: slope.order)
    rest = (slope for slope in outside if slope is not cause)
    return [cause, *sorted(rest, key=lambda s: (-round(2 * abs(s.off)), s.kind == "change", s.order))]


def _is_wrong_in_first(slope: Slope) -> bool:
    """What travels from block to block does not reach the first one."""
    return slope.in_first is None or slope.law is None or abs(slope.in_first - slope.law) > MARGIN


def _wrong(settings: Sequence[Setting]) -> list[tuple[str, Setting]]:
    """Of every row of the table and kind the first that is wrong: all blocks by their template, one by its own name."""
    firsts: dict[tuple[str, str], Setting] = {}
    right = {(s.pooled, s.kind) for s in settings if s.holds}
    for setting in settings:
        if not setting.holds:
            firsts.setdefault((setting.group, setting.kind), setting)
    return [(s.name if (s.pooled, s.kind) in right else s.pooled, s) for s in firsts.values()]


def _look_at(slope: Slope, axis: AxisName) -> str:
    off = slope.off
    direction = "grows" if off > 0 else "shrinks"
    nearest = round(off * 2) / 2 or math.copysign(0.5, off)
    cell = "init std or forward multiplier" if slope.kind == "init" else "learning rate"
    return (
        f"the {slope.group} row's {cell}: its own {'size at init' if slope.kind == 'init' else 'change'} {direction} "
        f"by {axis}^{off:+.2f} against the law, about what a factor wrong by {axis}^{nearest:+g} does"
    )


def _look_at_block(odd: OddBlock) -> str:
    what = "size at init" if odd.kind == "init" else "change"
    return (
        f"this block alone: its own {what} is {odd.octaves:+.2f} octaves off that of the blocks around it, and up to "
        f"{odd.allowed:.2g} would be less than half of what an exponent wrong by 1/2 does"
    )


def _look_at_setting(setting: Setting) -> str:
    name = "eps" if setting.kind == "eps" else "weight_decay"
    return (
        f"the {setting.group} row's {name}: in the optimizer's groups lr * {name} changes by {setting.measured:.4g} "
        f"from the smallest size to the largest, and the law says {setting.expected:.4g}"
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
        expected = attention.at(m_head=1.0 if scale.unit else scale.head_dim / before.head_dim)
        readings.append(Softmax(site, (before.head_dim, scale.head_dim), ratio, expected))
    return readings


def _carried(run: Run, scale: SoftmaxScale) -> float:
    """The part of the softmax scale that q's projection (or k's) carries, where no attribute could be set; a fused one
    makes both, and carries it once."""
    parameters = dict.fromkeys(run.init.uses[number].parameter for number in scale.sources)
    in_rows = (factor for name in parameters for _, factor in run.in_rows.get(name, ()))
    return math.prod(run.carried.get(name, 1.0) for name in parameters) * math.prod(in_rows)


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
