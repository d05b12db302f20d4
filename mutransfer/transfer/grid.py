"""Which trials a sweep still lacks, as overrides to paste."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mutransfer.transfer.axis import find_axis
from mutransfer.transfer.result import TransferReport


def missing_values(report: TransferReport) -> dict[str, Mapping[float, tuple[float, ...]]]:
    """parameterization -> size -> the values to add before optimum and regret can be told; empty when none."""
    return {name: one.missing for name, one in report.parameterizations.items() if one.missing}


def extension_overrides(report: TransferReport) -> list[str]:
    """One override per parameterization and size, for `mutransfer sweep`, that extends the grid where it must.

    >>> from mutransfer.transfer import Point, analyze
    >>> points = [Point("sp", n, 2.0**k, s, 2 + (k + 9) ** 2) for n in (32, 64) for k in range(-9, -4) for s in (0, 1)]
    >>> extension_overrides(analyze(points))[0]
    'parameterization=sp model.width=32 optimizer.lr=2**-11,2**-10'
    """
    key = find_axis(report.axis).key
    return [
        f"parameterization={name} {key}={size:g} {report.x}={value_list(values)}"
        for name, missing in missing_values(report).items()
        for size, values in missing.items()
    ]


def value_list(values: Iterable[float]) -> str:
    return ",".join(map(exact, values))


def exact(value: float) -> str:
    """As an override: a power of two as one, anything else in four digits."""
    exponent = math.log2(value)
    if abs(exponent - round(exponent)) < 1e-9 and not 0 <= exponent <= 10:
        return f"2**{round(exponent)}"
    return f"{value:.4g}"
