"""From points to a verdict: whether the best value of a small model is the best one of a larger model."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mutransfer.errors import ConfigError, RunError, nearest
from mutransfer.records import TrialRecord
from mutransfer.transfer.axis import find_axis
from mutransfer.transfer.cap import cap
from mutransfer.transfer.curves import Curve, curves_of
from mutransfer.transfer.direction import direction
from mutransfer.transfer.fit import fit
from mutransfer.transfer.grid import exact
from mutransfer.transfer.points import LR, MIN_SIZES, MIN_VALUES, Point, Selection, as_records, select, swept
from mutransfer.transfer.result import ParameterizationTransfer, TransferReport
from mutransfer.transfer.summary import incomplete, is_control, summarize
from mutransfer.transfer.verdict import worst

DRAWS = 1000
LEVEL = 0.9


def analyze(
    points: Iterable[Point],
    *,
    axis: str = "width",
    x: str = LR,
    subject: str | Sequence[str] | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> TransferReport:
    """Whether the optimum stays where it is as the model grows, with intervals.

    >>> parabola = [Point("mup", n, 2.0**k, s, 2 + 0.1 * (k + 6) ** 2 + 0.01 * s)
    ...             for n in (32, 64, 128) for k in range(-9, -2) for s in (0, 1)]
    >>> analyze(parabola).verdict
    'transfers'

    Args:
        points: of one sweep: at least three values at each of at least two sizes; ragged grids and missing seeds
            are fine.
        axis: the direction of growth: width, depth, batch, tokens.
        x: the key of the hyperparameter that `Point.lr` holds.
        subject: the parameterizations that the verdict is about; by default all that are not controls.
        level: of every interval.
        draws: resampled sweeps behind every interval.
        seed: of the resampling.

    Raises:
        ConfigError: too few values or sizes, a value that is not positive, an unknown subject.
    """
    points = tuple(points)
    _validate(points, level, draws)
    find_axis(axis)
    names = list(dict.fromkeys(point.parameterization for point in points))
    subjects = _subjects(subject, names)
    curves, short, notes = _analyzable(points, subjects, x)
    fits = {
        name: fit(of_name, level, draws, np.random.default_rng([seed, k]))
        for k, (name, of_name) in enumerate(curves.items())
    }
    analyzed = {name: incomplete(summarize(name, fits, level), short[name]) for name in fits}
    return TransferReport(
        verdict=worst([analyzed[name].verdict for name in subjects]),
        subject=subjects,
        parameterizations=analyzed,
        axis=axis,
        x=x,
        level=level,
        seeds=tuple(sorted({point.seed for point in points})),
        notes=(*notes, *_gap_notes(analyzed.values())),
    )


def analyze_records(
    records: Iterable[TrialRecord | Mapping[str, Any]],
    *,
    axis: str | None = None,
    subject: str | Sequence[str] | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
    unfinished: Iterable[Mapping[str, Any]] = (),
) -> TransferReport:
    """`analyze` for the learning rate and, beside it, for every hyperparameter of muP's own that was swept.

    Where fewer than three learning rates were tried, the verdict is about the hyperparameter of most values.

    Args:
        axis: the direction of growth; by default the one, of width and depth, along which sizes vary.
        unfinished: configs of trials that were asked for and have no record yet. Where they belong to a curve, its
            verdict is at most "undecided", as where a trial that failed may hide the optimum.
    """
    given, unfinished = as_records(records), tuple(unfinished)
    first, *others = swept(given)
    axis = direction(given, first) if axis is None else axis
    alike = functools.partial(analyze, axis=axis, level=level, draws=draws, seed=seed)
    selection = select(given, axis, first, unfinished)
    _some_size_ran(selection)
    report = _with(alike(selection.points, x=first, subject=subject), selection, subject is None)
    beside = {}
    for key in others:
        selection = select(given, axis, key, unfinished)
        if kept := _complete(selection.points):
            beside[key] = _with(alike(kept, x=key), selection, False)
    return dataclasses.replace(report, hyperparameters=beside)


def _some_size_ran(selection: Selection) -> None:
    """Raises RunError where only failures stand between a parameterization and its second size."""
    for name in dict.fromkeys(point.parameterization for point in selection.points):
        ran = {point.size for point in selection.points if point.parameterization == name}
        lost = [p for p in selection.failed if p.parameterization == name and p.size not in ran]
        if len(ran) < MIN_SIZES and lost and not is_control(name):
            sizes = ", ".join(f"{size:g}" for size in sorted({point.size for point in lost}))
            raise RunError(
                f"{name}: all {len(lost)} trials at size {sizes} failed, and transfer needs {MIN_SIZES} sizes: mend "
                "what they failed of, and run the same sweep again with engine.retry_failed=true."
            )


def _with(report: TransferReport, selection: Selection, any_subject: bool) -> TransferReport:
    """The report with what the selection of its points has to say."""
    capped = cap(report, selection, any_subject)
    return dataclasses.replace(
        capped,
        notes=(*selection.notes, *report.notes),
        settings=selection.settings,
        followers=selection.followers,
        failed=frozenset(selection.failed),
    )


def _validate(points: Sequence[Point], level: float, draws: int) -> None:
    if not points:
        raise ConfigError("There are no points to analyze: sweep at least three values at two sizes first.")
    if not 0 < level < 1:
        raise ConfigError(f"level={level} must lie between 0 and 1, such as 0.9.")
    if draws < 100:
        raise ConfigError(f"draws={draws} is too few for an interval; give at least 100.")
    for point in points:
        if not (0 < point.lr < math.inf and 0 < point.size < math.inf):
            raise ConfigError(f"{point} must have a positive value and size: both are plotted in octaves.")
        if math.isnan(point.loss):
            raise ConfigError(f"{point} has no loss: leave it out, or give inf where training diverged.")
        if point.loss <= 0:
            raise ConfigError(
                f"{point} has a loss that is not above 0, and regret is relative to the loss: give one that is bounded "
                "by 0 from below, or add one constant to all."
            )
    cells: dict[tuple[object, ...], float] = {}
    for point in points:
        key = (point.parameterization, point.size, point.lr, point.seed)
        if cells.setdefault(key, point.loss) != point.loss:
            raise ConfigError(
                f"Two trials claim to be {key} with losses {cells[key]} and {point.loss}: keep one setting."
            )


def _subjects(subject: str | Sequence[str] | None, names: Sequence[str]) -> tuple[str, ...]:
    """The given ones; else those that are not controls; else, where only controls were swept, these."""
    if subject is None:
        return tuple(name for name in names if not is_control(name)) or tuple(names)
    given = (subject,) if isinstance(subject, str) else tuple(subject)
    for name in given:
        if name not in names:
            raise ConfigError(f"The subject {name!r} is not among the sweep's parameterizations.{nearest(name, names)}")
    return given


def _analyzable(
    points: Sequence[Point], subjects: Sequence[str], x: str
) -> tuple[dict[str, list[Curve]], dict[str, list[Curve]], list[str]]:
    """The curves with enough values and those without, of every parameterization with enough sizes; notes.

    A subject must be one of them.
    """
    kept: dict[str, list[Curve]] = {}
    left_out: dict[str, list[Curve]] = {}
    notes: list[str] = []
    for name in dict.fromkeys(point.parameterization for point in points):
        curves = curves_of([point for point in points if point.parameterization == name])
        short = [curve for curve in curves if curve.usable.sum() < MIN_VALUES]
        whole = [curve for curve in curves if curve.usable.sum() >= MIN_VALUES]
        if len(whole) < MIN_SIZES and name in subjects:
            raise ConfigError(_too_few(name, curves, short, x) + _without(name, points, subjects))
        if len(whole) < MIN_SIZES:
            notes.append(f"{name}: left out, since {_too_few(name, curves, short, x)}")
        else:
            kept[name], left_out[name] = whole, short
            notes += [*_short_notes(name, short, x), *_seed_notes(name, whole), *_coarse_notes(name, whole)]
    return kept, left_out, notes


def _too_few(name: str, curves: Sequence[Curve], short: Sequence[Curve], x: str) -> str:
    """What is missing and what to do about it, in one sentence."""
    if not short:
        size = f"{curves[0].size:g}"
        return f"{name} was swept at size {size} only; transfer needs at least {MIN_SIZES} sizes: add a larger one."
    add = ",".join(exact(value) for value in sorted({value for curve in short for value in curve.more()}))
    if not any(curve.usable.any() for curve in short):
        sizes = ", ".join(f"{curve.size:g}" for curve in short)
        return f"{name} diverged at every value of {x} at size {sizes}: add smaller ones, such as {x}={add}."
    return (
        f"{name} has too few values of {x} that converged in every seed ({_counts(short)}); transfer needs at least "
        f"{MIN_VALUES} at each of {MIN_SIZES} sizes: add more, such as {x}={add}."
    )


def _without(name: str, points: Sequence[Point], subjects: Sequence[str]) -> str:
    """How to judge the others alone, where some of them were swept well enough."""
    whole = {point.parameterization for point in _complete(points)}
    others = [other for other in subjects if other != name and other in whole]
    return f" To judge what was swept: subject={others[0]}." if others else ""


def _counts(curves: Sequence[Curve]) -> str:
    return ", ".join(f"{int(curve.usable.sum())} at size {curve.size:g}" for curve in curves)


def _short_notes(name: str, short: Sequence[Curve], x: str) -> list[str]:
    left_out = f"{name}: left out where fewer than {MIN_VALUES} values of {x} converged ({_counts(short)})."
    return [left_out] if short else []


def _seed_notes(name: str, curves: Sequence[Curve]) -> list[str]:
    loose = ", ".join(f"{curve.size:g}" for curve in curves if not curve.paired)
    if not loose:
        return []
    return [
        f"{name}: seeds differ between values at size {loose}, so their spread counts in full and intervals are wider."
    ]


def _coarse_notes(name: str, curves: Sequence[Curve]) -> list[str]:
    """Where one size's values lie further apart than another's: their fits' errors differ, and no interval knows it."""
    if len({bool(curve.between()) for curve in curves}) < 2:
        return []
    coarse = ", ".join(f"{curve.size:g}" for curve in curves if curve.between())
    return [
        f"{name}: the values tried at size {coarse} lie further apart than elsewhere, so the best one may be off by "
        "more than its interval says: add those between."
    ]


def _gap_notes(analyzed: Iterable[ParameterizationTransfer]) -> list[str]:
    """Where a loss gap's interval is of another kind than the others, or is missing."""
    return [f"{one.name}: loss gap: {one.loss_gap.reason}." for one in analyzed if one.loss_gap.reason]


def _complete(points: Sequence[Point]) -> list[Point]:
    """The points of those parameterizations that were swept well enough along this hyperparameter."""
    groups = {
        name: curves_of([p for p in points if p.parameterization == name])
        for name in {p.parameterization for p in points}
    }
    whole = {n for n, curves in groups.items() if sum(c.usable.sum() >= MIN_VALUES for c in curves) >= MIN_SIZES}
    return [point for point in points if point.parameterization in whole]
