"""The rule: what counts as transfer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from mutransfer.transfer.bootstrap import Interval
from mutransfer.transfer.result import MAX_DRIFT, MAX_REGRET, Optimum, Verdict

_BADNESS: Mapping[Verdict, int] = {"transfers": 0, "undecided": 1, "does not transfer": 2}


def decide(drift: Interval, regret: Interval, optimum: Sequence[Optimum]) -> tuple[Verdict, tuple[str, ...]]:
    """Transfers when both intervals lie inside their lines, does not when one lies wholly outside; else undecided.

    Undecided too where the best values leap between neighbours: a line through all sizes may be level none the less.
    """
    open_ends = [best.size for best in optimum if best.missing]
    if open_ends:
        sizes = ", ".join(f"{size:g}" for size in open_ends)
        return "undecided", (f"the best value at size {sizes} is not between tried ones: extend the grid there",)
    outside = _outside(drift, regret)
    if outside:
        return "does not transfer", outside
    unknown = [
        part.reason or "there is no interval" for part in (drift, regret) if part.low is None or part.high is None
    ]
    if unknown:
        return "undecided", tuple(dict.fromkeys(unknown))
    unsure = _unsure(drift, regret, "add values between those tried" if any(best.between for best in optimum) else "")
    unsure += _leaps(optimum)
    return ("undecided", unsure) if unsure else ("transfers", ())


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    return max(verdicts, key=_BADNESS.__getitem__)


def _outside(drift: Interval, regret: Interval) -> tuple[str, ...]:
    reasons = []
    if drift.low is not None and drift.low > MAX_DRIFT:
        reasons.append(f"the drift is at least {drift.low:.2f} octaves per doubling; the line is {MAX_DRIFT:g}")
    if regret.low is not None and regret.low > MAX_REGRET:
        reasons.append(f"{_cost('is at least', regret.low)}; the line is {MAX_REGRET:.1%}")
    return tuple(reasons)


def _unsure(drift: Interval, regret: Interval, first: str) -> tuple[str, ...]:
    """What may be outside its line, and what to add: `first`, or else seeds."""
    reasons = []
    if drift.high is not None and drift.high > MAX_DRIFT:
        reasons.append(
            f"the drift may be as high as {drift.high:.2f} octaves per doubling; {first or 'add seeds or sizes'}"
        )
    if regret.high is not None and regret.high > MAX_REGRET:
        reasons.append(f"{_cost('may be as high as', regret.high)}; {first or 'add seeds'}")
    return tuple(reasons)


def _leaps(optimum: Sequence[Optimum]) -> tuple[str, ...]:
    """Neighbours whose intervals lie further apart than a drift on its line would take them."""
    found = []
    for small, large in itertools.pairwise(optimum):
        allowed = MAX_DRIFT * math.log2(large.size / small.size)
        leap = small.log2.distance(large.log2)
        if leap > allowed:
            found.append(
                f"from size {small.size:g} to {large.size:g} the best value moves by at least {leap:.2f} octaves, and "
                f"{allowed:.2f} are allowed: the line through all sizes does not hold there; add sizes between"
            )
    return tuple(found)


def _cost(how: str, regret: float) -> str:
    if math.isfinite(regret):
        return f"the regret {how} {regret:.2%}"
    return f"the regret {how} that of training that diverges"
