"""The numbers and the verdict of one parameterization, from its fit and those it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from mutransfer.rules.tables import PARAMETERIZATIONS
from mutransfer.transfer import asymptote
from mutransfer.transfer.bootstrap import Interval, interval, student
from mutransfer.transfer.curves import Curve, powers, seed_effects
from mutransfer.transfer.fit import Bottoms, Fit
from mutransfer.transfer.result import Measured, Optimum, ParameterizationTransfer
from mutransfer.transfer.valley import Array
from mutransfer.transfer.verdict import decide, worst

ONE_SEED = "one seed shows no noise: add seeds (seed=0,1)"


def summarize(name: str, fits: Mapping[str, Fit], level: float) -> ParameterizationTransfer:
    fit = fits[name]
    slope = _slope(fit, level)
    drift, regret = _drift(fit, slope, level), _regret(fit, level)
    optimum = tuple(_optimum(fit, index, level) for index in range(len(fit.curves)))
    verdict, reasons = decide(drift, regret, optimum)
    return ParameterizationTransfer(
        name=name,
        verdict=verdict,
        reasons=reasons,
        optimum=optimum,
        slope=slope,
        drift=drift,
        regret=regret,
        curvature_slope=_curvature_slope(fit, level),
        loss_gap=_gap(name, fits, level),
        asymptotic_penalty=_penalty(name, fits, level),
        missing=_missing(fit),
        curves={curve.size: _measured(curve) for curve in fit.curves},
        is_control=is_control(name),
    )


def incomplete(one: ParameterizationTransfer, short: Sequence[Curve]) -> ParameterizationTransfer:
    """At most "undecided" where training diverged at values of a size and too few are left, so that it is left out.

    A size at which few values were tried, and none diverged, was not asked about: it may be part of another sweep.
    """
    diverged = [curve for curve in short if not curve.usable.all()]
    if not diverged:
        return one
    counts = " and ".join(
        f"of the {len(curve.x)} values at size {curve.size:g} {int(curve.usable.sum())} converged" for curve in diverged
    )
    reason = f"{counts}, too few, so it is left out: add others"
    missing = dict(sorted({**one.missing, **{curve.size: curve.more() for curve in diverged}}.items()))
    verdict = worst([one.verdict, "undecided"])
    return replace(one, verdict=verdict, reasons=(reason, *one.reasons), missing=missing)


def is_control(name: str) -> bool:
    return name in PARAMETERIZATIONS and PARAMETERIZATIONS[name].is_control


def _of(fit: Fit, value: float, draws: Array | None, level: float) -> Interval:
    """An interval that says so when there was only one seed."""
    return interval(value, draws, level, None if fit.resampled is not None else ONE_SEED)


def _open(curves: Sequence[Curve]) -> str:
    """Why nothing that rests on these optima is known; empty when each lies between tried values."""
    sizes = ", ".join(f"{curve.size:g}" for curve in curves if not curve.interior)
    return f"the best value at size {sizes} is not between tried ones" if sizes else ""


def _slope(fit: Fit, level: float) -> Interval:
    if reason := _open(fit.curves):
        return Interval(None, reason=reason)
    draws = None if fit.resampled is None else fit.slope(fit.resampled.position)
    return _of(fit, float(fit.slope(fit.measured.position)), draws, level)


def _drift(fit: Fit, slope: Interval, level: float) -> Interval:
    """A magnitude cannot scatter around 0: its low end is 0 exactly where the slope's interval contains 0."""
    if slope.low is None or slope.high is None or slope.value is None:
        return Interval(None if slope.value is None else abs(slope.value), reason=slope.reason)
    crosses = slope.low <= 0 <= slope.high
    ends = abs(slope.low), abs(slope.high)
    return Interval(abs(slope.value), 0.0 if crosses else min(ends), max(ends))


def _regret(fit: Fit, level: float) -> Interval:
    """A magnitude, as drift: its low end is 0 exactly where the interval of the optimum's shift contains 0."""
    if reason := _open((fit.curves[0], fit.curves[-1])):
        return Interval(None, reason=reason)
    value = max(float(fit.measured.regret), 0.0) if not np.isnan(fit.measured.regret) else math.nan
    if math.isnan(value):
        values = ", ".join(f"{value:.3g}" for value in _unbracketed(fit))
        return Interval(
            None, reason=f"size {fit.curves[-1].size:g} was not tried at the smallest size's best value: add {values}"
        )
    if fit.resampled is None:
        return _of(fit, value, None, level)
    found = _of(fit, value, np.abs(fit.resampled.regret), level)
    moved = float(fit.measured.position[-1] - fit.measured.position[0])
    shift = interval(moved, fit.resampled.position[:, -1] - fit.resampled.position[:, 0], level)
    still = shift.low is not None and shift.high is not None and shift.low <= 0 <= shift.high
    return Interval(
        value, 0.0 if still else found.low, found.high, "training diverges there" if math.isinf(value) else None
    )


def _optimum(fit: Fit, index: int, level: float) -> Optimum:
    curve, position, resampled = fit.curves[index], fit.measured.position, fit.resampled
    draws = None if resampled is None else resampled.position[:, index]
    log2 = at_the_end(curve) if curve.bound else _of(fit, float(position[index]), draws, level)
    line = position.mean() + fit.slope(position) * (fit.sizes - fit.sizes.mean())
    return Optimum(
        size=curve.size,
        lr=exponential(log2),
        log2=log2,
        loss=float(fit.measured.loss[index]),
        curvature=_curvature(fit, index, level),
        residual=float(position[index] - line[index]),
        missing=curve.missing(),
        bound=curve.bound,
        between=curve.between(),
    )


def at_the_end(curve: Curve) -> Interval:
    """The last tried value: a fit through the points on one side of an optimum does not know where it is."""
    return Interval(float(curve.x[curve.lowest]), reason="it lies at the end of the tried values, or beyond")


def exponential(log2: Interval) -> Interval:
    value, low, high = (None if end is None else 2.0**end for end in (log2.value, log2.low, log2.high))
    return Interval(value, low, high, log2.reason)


def _curvature_slope(fit: Fit, level: float) -> Interval:
    if reason := _open(fit.curves):
        return Interval(None, reason=reason)
    bends = [_curvature(fit, index, level) for index in range(len(fit.curves))]
    if flat := [f"{curve.size:g}" for curve, bend in zip(fit.curves, bends, strict=True) if not _bends_up(bend)]:
        return Interval(None, reason=f"the curve at size {', '.join(flat)} cannot be told from one that does not bend")
    draws = None if fit.resampled is None else fit.slope(_log2(fit.resampled.curvature))
    return _of(fit, float(fit.slope(_log2(fit.measured.curvature))), draws, level)


def _curvature(fit: Fit, index: int, level: float) -> Interval:
    draws = None if fit.resampled is None else fit.resampled.curvature[:, index]
    return _of(fit, float(fit.measured.curvature[index]), draws, level)


def _bends_up(curvature: Interval) -> bool:
    low = curvature.value if curvature.low is None else curvature.low
    return low is not None and low > 0


def _log2(values: Array) -> Array:
    """nan where a resampled curve bends the wrong way."""
    logs: Array = np.log2(np.where(values > 0, values, np.nan))
    return logs


def _gap(name: str, fits: Mapping[str, Fit], level: float) -> Interval:
    """Best loss at the largest size over the best parameterization's; seed effects cancel where seeds are shared."""
    largest = max(fit.curves[-1].size for fit in fits.values())
    there = {other: fit for other, fit in fits.items() if fit.curves[-1].size == largest}
    if name not in there:
        return Interval(None, reason=f"not swept at the largest size, {largest:g}")
    best = min(there, key=lambda other: float(there[other].measured.loss[-1]))
    for one in (name, best):
        if reason := _open([there[one].curves[-1]]):
            return Interval(None, reason=f"{one}: {reason}")
    return _against(there[name], best, there[best], lambda bottoms: bottoms.loss[..., -1], level)


def _penalty(name: str, fits: Mapping[str, Fit], level: float) -> Interval:
    sizes = fits[name].sizes
    if len(sizes) < asymptote.MIN_SIZES:
        return Interval(None, reason=f"{len(sizes)} sizes; a limit needs at least {asymptote.MIN_SIZES}")
    long = {other: fit for other, fit in fits.items() if np.array_equal(fit.sizes, sizes)}
    best = min(long, key=lambda other: float(asymptote.limit(sizes, long[other].measured.loss)))
    for one in (name, best):
        if reason := _open(long[one].curves):
            return Interval(None, reason=f"{one}: {reason}")
    return _against(fits[name], best, long[best], lambda bottoms: asymptote.limit(sizes, bottoms.loss), level)


def _against(fit: Fit, name: str, best: Fit, pick: Callable[[Bottoms], Array], level: float) -> Interval:
    """A number of one fit, relative to that of the best one, which bears this name."""
    if fit is best:
        return Interval(0.0, 0.0, 0.0)
    value = float(pick(fit.measured) / pick(best.measured) - 1)
    if fit.resampled is None or best.resampled is None:
        return Interval(value, reason=ONE_SEED)
    ratio = pick(fit.resampled) / pick(best.resampled)
    if fit.curves[-1].seeds == best.curves[-1].seeds:
        return interval(value, ratio - 1, level)
    reason = f"the seeds are not those of {name}, so their spread is part of the interval"
    return interval(value, ratio * _unpaired(fit, best, len(ratio), level) - 1, level, reason)


def _unpaired(fit: Fit, best: Fit, draws: int, level: float) -> Array:
    """What two means over different seeds scatter by, as a factor: paired seeds would cancel it."""
    effects = [[seed_effects(curve) for curve in one.curves] for one in (fit, best)]
    freedom = sum(max((len(e) - 1 for e in of_fit), default=0) for of_fit in effects)  # a seed is one draw at all sizes
    every = [e for of_fit in effects for e in of_fit if len(e) > 1]
    if not every or freedom < 1:
        return np.ones(draws)
    spread = math.sqrt(sum(float(e @ e) for e in every) / sum(len(e) - 1 for e in every))
    means = math.sqrt(sum(1 / len(of_fit[-1]) for of_fit in effects if len(of_fit[-1])))
    normal = [NormalDist().inv_cdf((k + 0.5) / draws) for k in range(draws)]
    shuffled: Array = np.random.default_rng(0).permutation(normal)
    return 1 + shuffled * spread * means * student(level, freedom)


def _missing(fit: Fit) -> dict[float, tuple[float, ...]]:
    missing = {curve.size: curve.missing() for curve in fit.curves if curve.missing()}
    if not missing and math.isnan(float(fit.measured.regret)):
        missing[fit.curves[-1].size] = _unbracketed(fit)
    return missing


def _unbracketed(fit: Fit) -> tuple[float, ...]:
    """The values that take the largest size's grid to the smallest size's optimum and one beyond."""
    goal, curve = float(fit.measured.position[0]), fit.curves[-1]
    end, step = (curve.x[-1], curve.spacing) if goal > curve.x[-1] else (curve.x[0], -curve.spacing)
    count = math.ceil((goal - end) / step)
    return tuple(sorted(powers(*(float(end + step * k) for k in range(1, count + 1)))))


def _measured(curve: Curve) -> Measured:
    rows = {
        seed: tuple(None if math.isnan(v) else float(v) for v in row)
        for seed, row in zip(curve.seeds, curve.losses, strict=True)
    }
    return Measured(curve.values, tuple(float(v) for v in curve.mean), rows)
