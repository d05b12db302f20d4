"""Which trials a sweep still lacks, as overrides to paste."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mutransfer.transfer.axis import find_axis
from mutransfer.transfer.points import Point
from mutransfer.transfer.result import ParameterizationTransfer, TransferReport

WHOLE = 1e15
"""Below it whole numbers are written out; above they have digits that say nothing."""


@dataclass(frozen=True)
class Extension:
    """Trials to add: every combination of these sizes, values and seeds."""

    parameterization: str
    sizes: tuple[float, ...]
    values: tuple[float, ...]
    seeds: tuple[int, ...]

    def grid(self, report: TransferReport) -> dict[str, Sequence[float]]:
        """Config key -> its values."""
        return {find_axis(report.axis).key: self.sizes, report.x: self.values, "seed": self.seeds}


def missing_values(report: TransferReport) -> dict[str, Mapping[float, tuple[float, ...]]]:
    """parameterization -> size -> the values to add before optimum and regret can be told; empty when none."""
    return {name: one.missing for name, one in report.parameterizations.items() if one.missing}


def extensions(report: TransferReport) -> list[Extension]:
    """Values where an optimum is not between tried ones; where intervals leave a subject undecided, values between
    those beside an optimum if these lie far apart, and seeds else."""
    found = [part for name, one in report.parameterizations.items() for part in _lacking(name, one, report)]
    merged: dict[str, Extension] = {}
    for part in found:
        followers = report.followers.get(part.parameterization, {}).get(part.sizes[0], {})
        alike = json.dumps([part.parameterization, part.values, part.seeds, followers], default=str)
        known = merged.setdefault(alike, replace(part, sizes=()))
        merged[alike] = replace(known, sizes=(*known.sizes, *part.sizes))
    return list(merged.values())


def _lacking(name: str, one: ParameterizationTransfer, report: TransferReport) -> Iterator[Extension]:
    if one.missing:
        for size, values in one.missing.items():
            yield Extension(name, (size,), values, _seeds(one, size, report))
    elif name not in report.subject or one.verdict != "undecided" or one.open:
        return
    elif coarse := [best for best in one.optimum if best.between]:
        for best in coarse:
            yield Extension(name, (best.size,), best.between, _seeds(one, best.size, report))
    else:
        for size, curve in one.curves.items():
            converged = tuple(
                lr for lr, mean in zip(curve.lrs, curve.mean, strict=True) if mean is not None and math.isfinite(mean)
            )
            first = max(curve.losses) + 1
            yield Extension(name, (size,), converged, tuple(range(first, first + len(curve.losses))))


def _seeds(one: ParameterizationTransfer, size: float, report: TransferReport) -> tuple[int, ...]:
    """Those of the size's curve; where it has none, those of its failed trials, or else all."""
    failed = {point.seed for point in report.failed if (point.parameterization, point.size) == (one.name, size)}
    return tuple(one.curves[size].losses) if size in one.curves else tuple(sorted(failed)) or report.seeds


def extension_overrides(report: TransferReport) -> list[str]:
    """What to add to the sweep, as the overrides that change: `mutransfer sweep` needs its other ones too.

    >>> from mutransfer.transfer import Point, analyze
    >>> points = [Point("sp", n, 2.0**k, s, 2 + (k + 9) ** 2) for n in (32, 64) for k in range(-9, -4) for s in (0, 1)]
    >>> extension_overrides(analyze(points))
    ['parameterization=sp model.width=32,64 optimizer.lr=2**-11,2**-10 seed=0,1']
    """
    return [
        " ".join([f"parameterization={part.parameterization}", *overrides(report, part)]) for part in extensions(report)
    ]


def overrides(report: TransferReport, part: Extension) -> list[str]:
    """The grid, and that trials of it which have failed before are tried again, where there are such."""
    grid = [f"{key}={','.join(map(exact, values))}" for key, values in part.grid(report).items()]
    return [*grid, "engine.retry_failed=true"] if any(_covers(part, point) for point in report.failed) else grid


def _covers(part: Extension, point: Point) -> bool:
    same = point.parameterization == part.parameterization and point.size in part.sizes and point.seed in part.seeds
    return same and any(math.isclose(point.lr, value) for value in part.values)


def exact(value: float) -> str:
    """As an override that is read back as this very number: a power of two as one."""
    if float(value).is_integer() and abs(value) < WHOLE:
        return str(int(value))
    mantissa, exponent = math.frexp(value)
    return f"2**{exponent - 1}" if mantissa == 0.5 else repr(float(value))
