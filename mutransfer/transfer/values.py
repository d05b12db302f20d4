"""The numbers of a target, each with the rule and the measurement that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mutransfer.rules.depth import Place
from mutransfer.rules.optimizers import Optimizer
from mutransfer.rules.table import Parameterization, Role
from mutransfer.transfer.points import LR

_GROWING = {
    Role.INPUT: ("m_out",),
    Role.HIDDEN: ("m_in", "m_out"),
    Role.OUTPUT: ("m_in",),
    Role.VECTOR: ("m_out",),
    Role.SCALAR: (),
}
"""The size ratios that are not 1 for a role's tensors."""
_PLACES = {
    Role.INPUT: (Place.OUTSIDE,),
    Role.HIDDEN: (Place.INNER, Place.TERMINAL),
    Role.OUTPUT: (Place.OUTSIDE,),
    Role.VECTOR: (Place.OUTSIDE, Place.INNER, Place.TERMINAL, Place.STREAM_NORM),
    Role.SCALAR: (Place.OUTSIDE, Place.INNER),
}
"""Where in a deeper model a role's tensors stand."""
_OWN_MULTIPLIER = {Role.INPUT: "hp.embedding_mult", Role.OUTPUT: "hp.output_mult"}
TOGETHER = (
    "a role's lr holds together with its forward multiplier and its init std; the folded form puts the multiplier into "
    "both instead"
)


@dataclass(frozen=True)
class TransferredValue:
    """One hyperparameter at the target.

    Attributes:
        key: the config key.
        rule: what the table does to it on the way to the target.
        source: where the number comes from.
    """

    key: str
    value: float
    rule: str
    source: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value:.4g}   {self.rule}; {self.source}"


@dataclass(frozen=True)
class RoleValues(TransferredValue):
    """What the table makes of one role's tensors at the target: `value` is their lr.

    Attributes:
        multiplier: forward, with which that lr goes.
        init: factor on the base model's init std.
    """

    multiplier: float
    init: float

    def __str__(self) -> str:
        numbers = f"{self.key} = {self.value:.4g}, multiplier {self.multiplier:.4g}, init std x {self.init:.4g}"
        return f"{numbers}   {self.rule}; {self.source}"


def role_values(
    table: Parameterization, optimizer: Optimizer, ratio: float, given: Mapping[str, float], depth: float = 1.0
) -> tuple[RoleValues, ...]:
    """Every role at `ratio` times the base's width and `depth` times its depth, in the table's own variables.

    Args:
        given: config key -> value of the lr and of muP's own hyperparameters.
    """
    lines: list[tuple[Role, Place | None]] = [(role, None) for role in Role]
    if table.depth is not None and depth != 1:
        lines = [(role, place) for role in Role for place in _PLACES[role]]
    return tuple(_line(table, role, place, optimizer, (ratio, depth), given) for role, place in lines)


def _line(
    table: Parameterization,
    role: Role,
    place: Place | None,
    optimizer: Optimizer,
    ratios: tuple[float, float],
    given: Mapping[str, float],
) -> RoleValues:
    row, lr = table.row(role), table.rule(role, optimizer).lr
    multiplier, init = row.multiplier, row.init_std
    at, said = dict.fromkeys(_GROWING[role], ratios[0]), f"m = {ratios[0]:g}"
    own, forward = given.get(f"hp.lr.{role}", 1.0), given.get(_OWN_MULTIPLIER.get(role, ""), 1.0)
    if table.depth is not None and place is not None:
        deeper = table.depth.row(place)
        lr, multiplier, init = lr * deeper.rule(optimizer).lr, multiplier * deeper.multiplier, init * deeper.init
        at, said = at | {"m_depth": ratios[1]}, f"{said}, m_depth = {ratios[1]:g}"
        forward *= given.get("hp.residual_mult", 1.0) if place is Place.TERMINAL else 1.0
    times = LR + (f" * hp.lr.{role}" if own != 1 else "")
    return RoleValues(
        key=f"lr of {role}" + (f", {place}" if place else ""),
        value=given[LR] * own * lr.at(**at),
        rule=f"{times} * ({lr}), multiplier ({multiplier}), init std ({init}) at {said}",
        source=table.source,
        multiplier=multiplier.at(**at) * forward,
        init=init.at(**at) * given.get(f"hp.init_std.{role}", 1.0),
    )
