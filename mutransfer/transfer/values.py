"""The numbers of a target, each with the rule and the measurement that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    table: Parameterization, role: Role, optimizer: Optimizer, ratio: float, given: Mapping[str, float]
) -> RoleValues:
    """One role at `ratio` times the base's width, in the table's own variables.

    Args:
        given: config key -> value of the lr and of muP's own hyperparameters.
    """
    row, lr = table.row(role), table.rule(role, optimizer).lr
    at = dict.fromkeys(_GROWING[role], ratio)
    own = given.get(f"hp.lr.{role}", 1.0)
    times = LR + (f" * hp.lr.{role}" if own != 1 else "")
    return RoleValues(
        key=f"lr of {role}",
        value=given[LR] * own * lr.at(**at),
        rule=f"{times} * ({lr}), multiplier ({row.multiplier}), init std ({row.init_std}) at m = {ratio:g}",
        source=table.source,
        multiplier=row.multiplier.at(**at) * given.get(_OWN_MULTIPLIER.get(role, ""), 1.0),
        init=row.init_std.at(**at) * given.get(f"hp.init_std.{role}", 1.0),
    )
