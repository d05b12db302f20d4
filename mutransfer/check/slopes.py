"""Runs of many widths and seeds as one exponent per parameter use, and one per place of the activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

import numpy as np

from mutransfer.check.measure import Place, What
from mutransfer.check.runs import Run
from mutransfer.check.shadow import Key, Use
from mutransfer.check.statistics import Interval, intervals, seed_slopes
from mutransfer.rules.table import Law, Role

Kind = Literal["init", "change"]
K = TypeVar("K")
Status = Literal["inside", "outside", "undecided"]
Runs = Mapping[int, Sequence[Run]]
"""Width -> one run per seed, the same number everywhere."""

MARGIN = 0.25
"""Every exponent of every rule is a multiple of 1/2: half the way to the nearest wrong one."""


@dataclass(frozen=True)
class Slope:
    """One measured exponent in width.

    Attributes:
        name: of a parameter (its second use has "(use 2)" behind it), a module, an attention site, a residual sum.
        what: "parameter", or "module", "logits", "stream", which are for the plot and never judged.
        kind: "init" (RMS of multiplier * W_0 x_0, or of an activation) or "change" (since init).
        value, low, high: the measured exponent and its interval.
        sizes: mean log2 RMS at each width.
        order: place in execution order.
        role, law: of a parameter's use, and the exponent that the table claims for it; None elsewhere.
        parameter, op: the parameter's name alone, and what uses it.
    """

    name: str
    what: What
    kind: Kind
    value: float
    low: float
    high: float
    sizes: tuple[float, ...]
    order: int
    role: Role | None = None
    law: float | None = None
    parameter: str = ""
    op: str = ""

    @property
    def off(self) -> float:
        """How far the exponent is from the law."""
        return self.value - self.law if self.law is not None else 0.0

    @property
    def status(self) -> Status:
        law = 0.0 if self.law is None else self.law
        if law - MARGIN <= self.low and self.high <= law + MARGIN:
            return "inside"
        return "outside" if self.low > law + MARGIN or self.high < law - MARGIN else "undecided"


@dataclass(frozen=True)
class Listed:
    """A parameter that is not judged, and why.

    `unseen`: it is trained and should have been.
    """

    parameter: str
    why: str
    unseen: bool = False


def parameter_slopes(runs: Runs, law: Law, roles: Mapping[str, str]) -> tuple[list[Slope], list[Listed]]:
    """The judged exponents in execution order, and the parameters that are not judged.

    Args:
        runs: of all widths.
        law: what the table claims.
        roles: glob over parameter names -> role, where the user knows better than the shapes.
    """
    listed = _listed(runs)
    skipped = {item.parameter for item in listed}
    uses = [use for use in _first(runs).init.uses if use.parameter not in skipped]
    order = {use.key: place for place, use in enumerate(uses)}
    tied = {use.parameter for use in uses if use.index > 0} & {use.parameter for use in uses if use.lookup}
    found = _exponents(runs, _contributions, keep=order)
    made = [
        _slope(
            uses[order[key]], kind, interval, sizes, order[key], role, _claim(law, kind, role, interval, key[0] in tied)
        )
        for (kind, key), (interval, sizes) in found.items()
        for role in [use_role(runs, key, roles)]
    ]
    moved = {slope.parameter for slope in made if slope.kind == "change"}
    unmoved = dict.fromkeys(use.parameter for use in uses if use.parameter not in moved)
    return made, listed + [Listed(name, "it never changes, or is not used in every run") for name in unmoved]


def _slope(
    use: Use, kind: Kind, interval: Interval, sizes: tuple[float, ...], order: int, role: Role, law: float
) -> Slope:
    name = use.parameter if use.index == 0 else f"{use.parameter} (use {use.index + 1})"
    numbers = interval.value, interval.low, interval.high
    return Slope(name, "parameter", kind, *numbers, sizes, order, role, law, use.parameter, use.op)


def _claim(law: Law, kind: Kind, role: Role, interval: Interval, tied: bool) -> float:
    """The exponent that the table claims.

    A tied readout meets its own rows in the residual stream: the logit of the token that was read keeps its size, the
    others are noise. Their mix at init has an exponent anywhere from the readout's to the embedding's.
    """
    claimed = (law.init if kind == "init" else law.change)[role]
    if tied and kind == "init" and role is Role.OUTPUT:
        return min(max(interval.value, claimed), max(claimed, law.init[Role.INPUT]))
    return claimed


def activation_slopes(runs: Runs) -> list[Slope]:
    """Exponents of module outputs, attention logits and the residual stream."""
    order = {place: number for number, place in enumerate(_first(runs).init.sizes)}
    return [
        Slope(name or "(model)", what, kind, i.value, i.low, i.high, sizes, order[what, name])
        for (kind, (what, name)), (i, sizes) in _exponents(runs, _activations, keep=order).items()
    ]


def _exponents(
    runs: Runs, read: Callable[[Run], dict[tuple[Kind, K], float]], *, keep: Container[K]
) -> dict[tuple[Kind, K], tuple[Interval, tuple[float, ...]]]:
    """Interval and mean log2 size per width, of whatever every run has; each kind is shrunk to its own noise."""
    grid = [[read(run) for run in of_width] for of_width in runs.values()]
    every = [readings for row in grid for readings in row]
    keys = [key for key in every[0] if key[1] in keep and all(math.isfinite(r.get(key, math.inf)) for r in every)]
    series = {key: np.array([[readings[key] for readings in row] for row in grid]) for key in keys}
    widths = [math.log2(width) for width in runs]
    made: dict[tuple[Kind, K], tuple[Interval, tuple[float, ...]]] = {}
    for kind in ("init", "change"):
        alike = [key for key in keys if key[0] == kind]
        found = intervals([seed_slopes(widths, series[key]) for key in alike], family=len(keys))
        made |= {key: (i, tuple(series[key].mean(axis=1))) for key, i in zip(alike, found, strict=True)}
    return made


def _contributions(run: Run) -> dict[tuple[Kind, Key], float]:
    """log2 RMS at init, and its mean over the later steps; what a parameter carries for another is divided out."""
    carried = {name: math.log2(factor) for name, factor in run.carried.items()}
    first = {use.key: _log2(use.size) - carried.get(use.parameter, 0.0) for use in run.init.uses}
    later = [{use.key: use.size for use in snapshot.uses} for snapshot in run.later]
    change = {key: _mean_log2(step.get(key) for step in later) - carried.get(key[0], 0.0) for key in first}
    return {**{("init", key): v for key, v in first.items()}, **{("change", key): v for key, v in change.items()}}


def _activations(run: Run) -> dict[tuple[Kind, Place], float]:
    change = {place: _mean_log2(snapshot.moved.get(place) for snapshot in run.later) for place in run.init.sizes}
    init = {place: _log2(size) for place, size in run.init.sizes.items()}
    return {**{("init", key): v for key, v in init.items()}, **{("change", key): v for key, v in change.items()}}


def _mean_log2(sizes: Iterable[float | None]) -> float:
    logs = [_log2(size) for size in sizes]
    return sum(logs) / len(logs)


def _log2(size: float | None) -> float:
    return math.log2(size) if size else -math.inf


def _listed(runs: Runs) -> list[Listed]:
    every = [run for of_width in runs.values() for run in of_width]
    used = {use.parameter for use in every[0].init.uses}
    still = frozenset.intersection(*(run.without_gradient for run in every))
    return [
        *(Listed(name, "frozen") for name in sorted(every[0].frozen)),
        *(Listed(name, _why_still(name in used)) for name in sorted(still)),
        *(Listed(name, _UNSEEN, unseen=True) for name in sorted(every[0].trained - used - still)),
    ]


_UNSEEN = "it is trained, but its contribution could not be seen in the forward pass"


def _why_still(used: bool) -> str:
    return "its gradient is zero by symmetry (as a key's bias under softmax)" if used else "the loss does not use it"


def use_role(runs: Runs, key: Key, roles: Mapping[str, str]) -> Role:
    """The role of one use, from what grows between the smallest and the largest width; the user's word wins."""
    for pattern, role in roles.items():
        if fnmatchcase(key[0], pattern):
            return Role(role)
    small, large = (_use(runs[width][0], key) for width in (min(runs), max(runs)))
    if large.fan_in > small.fan_in:
        return Role.HIDDEN if large.fan_out > small.fan_out else Role.OUTPUT
    if large.fan_out > small.fan_out:
        return Role.INPUT if large.fan_in > 1 or large.lookup else Role.VECTOR
    return Role.SCALAR


def _first(runs: Runs) -> Run:
    return runs[min(runs)][0]


def _use(run: Run, key: Key) -> Use:
    return next(use for use in run.init.uses if use.key == key)
