"""Runs of many sizes and seeds as one exponent per parameter use, and one per place of the activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from mutransfer.check.axes import MARGIN, Axis, Claim, Kind, Pool, Runs
from mutransfer.check.measure import Site, What
from mutransfer.check.runs import Run
from mutransfer.check.shadow import Key, Use
from mutransfer.check.statistics import Interval, intervals, seed_slopes
from mutransfer.rules.depth import Place
from mutransfer.rules.table import Role

FEWEST = 2
"""Seeds that an interval needs: an expert that some batches do not reach is judged by the others."""
K = TypeVar("K")
Status = Literal["inside", "outside", "undecided"]


@dataclass(frozen=True)
class Slope:
    """One measured exponent.

    Attributes:
        name: of a parameter (its second use has "(use 2)" behind it), a module, an attention site, a residual sum; in a
            depth check of the template that its blocks share.
        what: "parameter", or "module", "logits", "stream", which are for the plot and never judged.
        kind: "init" (RMS of multiplier * W_0 x_0, or of an activation) or "change" (since init).
        value, low, high, lowest, highest: the measured exponent with its intervals, see `Interval`.
        sizes: mean log2 RMS at each size.
        order: where in execution order.
        role, place, law: of a parameter's use (its role in a width check, its place in a depth check), and the exponent
            that the table claims for it; None elsewhere, and the law at init where the values are kept.
        parameter, op: the parameter's name alone, and what uses it.
        in_first: of a template's init, the exponent in the first block alone, which no other block stands in front of.
        at_most: where no more is claimed than that, the law being the exponent below it that is nearest to the value.
        met: the exponent of the activation that it is multiplied with, where that shrinks: the law is relative to it.
    """

    name: str
    what: What
    kind: Kind
    value: float
    low: float
    high: float
    lowest: float
    highest: float
    sizes: tuple[float, ...]
    order: int
    role: Role | None = None
    law: float | None = None
    parameter: str = ""
    op: str = ""
    place: Place | None = None
    in_first: float | None = None
    at_most: float | None = None
    met: float = 0.0

    @property
    def group(self) -> str:
        """The row of the table that it is held to."""
        return str(self.place or self.role or "")

    @property
    def off(self) -> float:
        """How far the exponent is from the law."""
        return self.value - self.law if self.law is not None else 0.0

    @property
    def status(self) -> Status:
        """Against the law: inside by its own interval, outside by the one that holds together with all others. Nothing
        is outside where there is no law."""
        if self.law is None:
            return "inside"
        ends = (self.law, self.law) if self.at_most is None else (-math.inf, self.at_most)
        least, most = ends[0] - MARGIN, ends[1] + MARGIN
        if least <= self.low and self.high <= most:
            return "inside"
        return "outside" if self.lowest > most or self.highest < least else "undecided"


@dataclass(frozen=True)
class Listed:
    """A parameter, or one use of it, that is not judged, and why.

    `unseen`: it is trained and should have been.
    """

    parameter: str
    why: str
    unseen: bool = False


def parameter_slopes(runs: Runs, axis: Axis) -> tuple[list[Slope], list[Listed]]:
    """The exponents of parameters in execution order, and the parameters and uses that are not judged.

    Args:
        runs: of all sizes.
        axis: what varies between them, and what is claimed.
    """
    listed, pool = _listed(runs, axis), Pool.of(runs, axis)
    skipped = {item.parameter for item in listed}
    firsts = {key: use for key, use in pool.firsts(runs[min(runs)]).items() if key[0] not in skipped}
    order = {key: number for number, key in enumerate(firsts)}
    claims = pool.claims(runs)
    judged = order.keys() & claims.keys()
    found = _exponents(runs, lambda run: _contributions(run, pool), judged, noise=lambda key: claims[key].at_most)
    in_first = _exponents(runs, lambda run: _first_contributions(run, pool), judged)
    made = [
        replace(
            _slope(key, kind, interval, sizes, order[key], claims[key], firsts[key].op),
            in_first=in_first[kind, key][0].value if (kind, key) in in_first else None,
        )
        for (kind, key), (interval, sizes) in found.items()
    ]
    moved = {slope.parameter for slope in made if slope.kind == "change"}
    unmoved = dict.fromkeys(name for name, _ in firsts if name not in moved)
    return made, listed + [Listed(name, _UNMOVED) for name in unmoved]


def _slope(
    key: Key, kind: Kind, interval: Interval, sizes: tuple[float, ...], order: int, claim: Claim, op: str
) -> Slope:
    parameter, index = key
    name = parameter if index == 0 else f"{parameter} (use {index + 1})"
    numbers, law = interval.numbers, claim.exponent(kind, interval.value)
    role, place = (claim.group, None) if isinstance(claim.group, Role) else (None, claim.group)
    at_most = claim.change if claim.at_most else None
    met = claim.met[kind == "change"]
    return Slope(name, "parameter", kind, *numbers, sizes, order, role, law, parameter, op, place, None, at_most, met)


def activation_slopes(runs: Runs, axis: Axis) -> list[Slope]:
    """Exponents of module outputs, attention logits and the residual stream."""
    order: dict[Site, int] = {}
    for site in _first(runs).init.sizes:
        order.setdefault(_pooled_site(site, axis), len(order))
    found = _exponents(runs, lambda run: _activations(run, axis), order)
    return [
        Slope(name or "(model)", what, kind, *i.numbers, sizes, order[what, name])
        for (kind, (what, name)), (i, sizes) in found.items()
    ]


def _pooled_site(site: Site, axis: Axis) -> Site:
    return site[0], axis.pooled(site[1])


def _exponents(
    runs: Runs,
    read: Callable[[Run], Mapping[tuple[Kind, K], float]],
    keep: Container[K],
    noise: Callable[[K], object] = lambda _: None,
) -> dict[tuple[Kind, K], tuple[Interval, tuple[float, ...]]]:
    """Interval and mean log2 RMS per size, of the seeds that have a reading at every size, where these are enough; each
    kind is shrunk to its own noise, and those apart that `noise` tells apart."""
    grid = [[read(run) for run in of_size] for of_size in runs.values()]
    known = dict.fromkeys(key for row in grid for readings in row for key in readings if key[1] in keep)
    every = {key: np.array([[readings.get(key, math.nan) for readings in row] for row in grid]) for key in known}
    series = {key: sizes[:, np.isfinite(sizes).all(axis=0)] for key, sizes in every.items()}
    keys = [key for key in known if series[key].shape[1] >= FEWEST]
    log_sizes = [math.log2(size) for size in runs]
    made: dict[tuple[Kind, K], tuple[Interval, tuple[float, ...]]] = {}
    for sort in dict.fromkeys((kind, noise(key)) for kind, key in keys):
        alike = [key for key in keys if (key[0], noise(key[1])) == sort]
        found = intervals([seed_slopes(log_sizes, series[key]) for key in alike], family=len(keys))
        made |= {key: (i, tuple(series[key].mean(axis=1))) for key, i in zip(alike, found, strict=True)}
    return made


def _contributions(run: Run, pool: Pool) -> dict[tuple[Kind, Key], float]:
    """The size of every use, the mean over the blocks of its template."""
    readings: dict[tuple[Kind, Key], list[float]] = {}
    for (kind, use), size in log_sizes_of(run).items():
        readings.setdefault((kind, pool.key(use)), []).append(size)
    return {key: _mean_of_seen(sizes) for key, sizes in readings.items()}


def _first_contributions(run: Run, pool: Pool) -> dict[tuple[Kind, Key], float]:
    """The size at init of every use, in the first block of its template."""
    readings: dict[tuple[Kind, Key], float] = {}
    for (kind, use), size in log_sizes_of(run).items():
        if kind == "init":
            readings.setdefault((kind, pool.key(use)), size)
    return readings


def log_sizes_of(run: Run) -> dict[tuple[Kind, Use], float]:
    """log2 RMS at init and after the last step; what a parameter carries for another is divided out."""
    carried = {name: math.log2(factor) for name, factor in run.carried.items()}
    last = {use.key: use.size for use in run.last.uses}
    sizes: dict[tuple[Kind, Use], float] = {}
    for use in run.init.uses:
        own = carried.get(use.parameter, 0.0)
        sizes["init", use] = _log2(use.size) - own
        sizes["change", use] = _log2(last.get(use.key)) - own
    return sizes


def _activations(run: Run, axis: Axis) -> dict[tuple[Kind, Site], float]:
    readings: dict[tuple[Kind, Site], list[float]] = {}
    for site, size in run.init.sizes.items():
        pooled = _pooled_site(site, axis)
        readings.setdefault(("init", pooled), []).append(_log2(size))
        readings.setdefault(("change", pooled), []).append(_log2(run.last.moved.get(site)))
    return {key: _mean_of_seen(sizes) for key, sizes in readings.items()}


def _mean_of_seen(log_sizes: Sequence[float]) -> float:
    """A block that a batch does not reach (an expert without a token) says nothing of its template."""
    seen = [size for size in log_sizes if math.isfinite(size)]
    return sum(seen) / len(seen) if seen else -math.inf


def _log2(size: float | None) -> float:
    return math.log2(size) if size else -math.inf


def _listed(runs: Runs, axis: Axis) -> list[Listed]:
    """What holds of all blocks of a template is said once, and what holds of some of them is not said."""
    every = [run for of_size in runs.values() for run in of_size]
    first = every[0]
    used = {axis.pooled(use.parameter) for use in first.init.uses}
    still = frozenset.intersection(*(_wholly(run.without_gradient, run, axis) for run in every))
    trained = {axis.pooled(name) for name in first.trained}
    return [
        *(Listed(name, "frozen") for name in sorted(_wholly(first.frozen, first, axis))),
        *(Listed(name, _why_still(name in used)) for name in sorted(still)),
        *(Listed(name, _UNSEEN, unseen=True) for name in sorted(trained - used - still)),
    ]


def _wholly(names: Collection[str], run: Run, axis: Axis) -> frozenset[str]:
    """The pooled names of which every parameter is one of these."""
    others = (run.frozen | run.without_gradient | run.trained) - set(names)
    return frozenset(map(axis.pooled, names)) - frozenset(map(axis.pooled, others))


_UNMOVED = "it never changes, or fewer than two seeds use it at every size"
_UNSEEN = "it is trained, but its contribution could not be seen in the forward pass"


def _why_still(used: bool) -> str:
    return (
        "its gradient is zero, perhaps by symmetry (as a key's bias under softmax)"
        if used
        else "the loss does not use it"
    )


def _first(runs: Runs) -> Run:
    return runs[min(runs)][0]
