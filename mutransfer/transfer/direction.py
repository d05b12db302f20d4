"""Along which axis a sweep's models grow, where nobody has said it."""

from __future__ import annotations

from collections.abc import Sequence

from mutransfer.errors import ConfigError
from mutransfer.records import TrialRecord
from mutransfer.transfer.axis import AXES, Axis, flatten
from mutransfer.transfer.points import LR, MIN_SIZES, MIN_VALUES, select

GROWING = ("width", "depth")
"""The axes that tables have rules for; another one has to be asked for."""


def direction(records: Sequence[TrialRecord], x: str = LR) -> str:
    """The axis along which the sizes of these trials vary; width where none does.

    Where several do, it is the one that was swept: with enough values at enough sizes, all else being equal.

    Raises:
        ConfigError: several were swept, or none well enough to tell.
    """
    varying = [name for name in GROWING if _varies(records, AXES[name])]
    if len(varying) > 1:
        varying = [name for name in varying if _is_swept(records, name, x)] or varying
    if len(varying) > 1:
        choices = " or ".join(f"axis={name}" for name in varying)
        raise ConfigError(f"These trials vary in {' and in '.join(varying)}: say along which to judge, {choices}.")
    return varying[0] if varying else GROWING[0]


def _varies(records: Sequence[TrialRecord], axis: Axis) -> bool:
    sizes = {str(flatten(record.config).get(axis.key)) for record in records}
    return len(sizes) > 1


def _is_swept(records: Sequence[TrialRecord], name: str, x: str) -> bool:
    values: dict[tuple[str, float], set[float]] = {}
    for point in select(records, name, x).points:
        values.setdefault((point.parameterization, point.size), set()).add(point.lr)
    covered = [name for (name, _), tried in values.items() if len(tried) >= MIN_VALUES]
    return any(covered.count(name) >= MIN_SIZES for name in covered)
