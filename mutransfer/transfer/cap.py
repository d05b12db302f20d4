"""What trials without a result do to a verdict: where they could change it, it is undecided."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from mutransfer.transfer.points import Point, Selection
from mutransfer.transfer.result import ParameterizationTransfer, TransferReport
from mutransfer.transfer.summary import is_control
from mutransfer.transfer.verdict import worst


def cap(report: TransferReport, selection: Selection, any_subject: bool) -> TransferReport:
    """Every parameterization's verdict, and the report's, at most "undecided" where trials without a result may count.

    An unfinished trial always does: it was asked for, and the same sweep ends it. A failed one may fail again, so it
    counts only where it may hide the optimum: where no seed of its value has a result and the value lies next to the
    best one (a valley has one bottom), or where its whole size is missing. Elsewhere the intervals know it.

    Args:
        any_subject: whether every parameterization that is no control is a subject, also one that has not begun.
    """
    capped = {name: _capped(one, selection) for name, one in report.parameterizations.items()}
    verdict = worst([capped[name].verdict for name in report.subject])
    silent = [name for name in selection.silent if any_subject and not is_control(name)]
    said = [f"no trial of {', '.join(silent)} has a result yet: run the same sweep again"] if silent else []
    said += [f"{name}: {capped[name].open}" for name in report.subject if capped[name].open]
    return replace(report, verdict="undecided" if said else verdict, parameterizations=capped, open="; ".join(said))


def _capped(one: ParameterizationTransfer, selection: Selection) -> ParameterizationTransfer:
    unfinished = [point for point in selection.unfinished if point.parameterization == one.name]
    hidden = _hidden(one, [point for point in selection.failed if point.parameterization == one.name])
    said = []
    if unfinished:
        trials = "1 trial is" if len(unfinished) == 1 else f"{len(unfinished)} trials are"
        said.append(f"{trials} unfinished: run the same sweep again")
    if hidden:
        sizes = ", ".join(f"{size:g}" for size in hidden)
        said.append(f"trials that failed at size {sizes} may hide the best value: run them again")
    if not said:
        return one
    missing = {
        size: tuple(sorted({*one.missing.get(size, ()), *hidden.get(size, ())})) for size in {*one.missing, *hidden}
    }
    reason = " and ".join(said)
    return replace(
        one, verdict="undecided", reasons=(reason, *one.reasons), missing=dict(sorted(missing.items())), open=reason
    )


def _hidden(one: ParameterizationTransfer, failed: Iterable[Point]) -> dict[float, tuple[float, ...]]:
    """Size -> the failed values among which the optimum may lie."""
    found: dict[float, set[float]] = defaultdict(set)
    for point in failed:
        if _may_be_best(one, point):
            found[point.size].add(point.lr)
    return {size: tuple(sorted(values)) for size, values in sorted(found.items())}


def _may_be_best(one: ParameterizationTransfer, point: Point) -> bool:
    if point.size not in one.curves:
        return True
    curve = one.curves[point.size]
    if point.lr in curve.lrs:
        return False
    best = curve.lowest
    below, above = curve.lrs[:best], curve.lrs[best + 1 :]
    return (not below or below[-1] < point.lr) and (not above or point.lr < above[0])
