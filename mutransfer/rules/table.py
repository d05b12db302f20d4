"""The shape of a parameterization: one row per role, one column per optimizer family, and the law it claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from mutransfer.errors import RuleError, nearest
from mutransfer.rules.optimizers import OPTIMIZERS, Optimizer
from mutransfer.rules.scale import Scale, one

if TYPE_CHECKING:
    from mutransfer.rules.depth import DepthTable


class Role(StrEnum):
    """What a parameter does with the sizes that grow with width."""

    INPUT = "input"
    """Maps finite to infinite: embeddings, positions, the first linear layer, a patch convolution."""
    HIDDEN = "hidden"
    """Maps infinite to infinite: it contracts a dimension that grows, and its output grows too."""
    OUTPUT = "output"
    """Maps infinite to finite: readouts, routers, value heads."""
    VECTOR = "vector"
    """One size that grows and no contraction of it: biases, norm gains, depthwise convolutions."""
    SCALAR = "scalar"
    """No size that grows: an output bias, a QK-norm gain at fixed head_dim."""


@dataclass(frozen=True)
class Rule:
    """One optimizer family's cells for one role, each a factor on the base model's value."""

    lr: Scale
    eps: Scale = one
    weight_decay: Scale = one


@dataclass(frozen=True)
class Row:
    """One role's cells, each a factor on the base model's value.

    Attributes:
        init_std: of the stored weight.
        multiplier: forward: the layer computes multiplier * W x.
        rules: optimizer family -> lr, eps, weight decay.
    """

    init_std: Scale
    multiplier: Scale
    rules: Mapping[str, Rule]


@dataclass(frozen=True)
class Law:
    """The exponents that the coordinate check holds a table to, typed from theory and never computed from its cells.

    Attributes:
        init: role -> exponent in width of RMS(multiplier * W_0 x_0).
        change: role -> exponent in width of RMS(multiplier * (W_t - W_0) x_t); 0 is the claim that transfers.
    """

    init: Mapping[Role, float]
    change: Mapping[Role, float] = field(default_factory=lambda: dict.fromkeys(Role, 0.0))


@dataclass(frozen=True)
class Parameterization:
    """A parameterization as a table of data. The table checks itself when it is made.

    Attributes:
        name: the registry name.
        source: paper, table.
        rows: one per role.
        law: see `Law`.
        attention: the softmax scale as a factor on the base model's, where head_dim grows.
        gauge: role -> forward multiplier of the variables in which gradients are clipped by their global norm;
            one gauge per family of equivalent tables, so that all forms of it clip alike.
        kind: "relative": all cells are ratios to a base; "absolute": no base.
        constant_vector: the row of vectors and inputs with a constant init (gains, zero biases), where the table
            would give them a multiplier; equal to the vector row by symmetry.
        ties: whether one tensor may be both embedding and readout.
        is_control: a table that is known not to transfer, trained beside the subject for comparison.
        depth: what residual blocks are multiplied by beside, in a deeper model; None for a table of widths only.
    """

    name: str
    source: str
    rows: Mapping[Role, Row]
    law: Law
    attention: Scale
    gauge: Mapping[Role, Scale] = field(default_factory=dict)
    kind: Literal["relative", "absolute"] = "relative"
    constant_vector: Row | None = None
    ties: bool = True
    is_control: bool = False
    depth: DepthTable | None = None

    def __post_init__(self) -> None:
        missing = [role.value for role in Role if role not in self.rows]
        if missing:
            raise RuleError(f"Parameterization {self.name!r} has no row for {', '.join(missing)}.")
        families = {frozenset(row.rules) for row in self.rows.values()}
        if len(families) != 1:
            raise RuleError(f"Parameterization {self.name!r}: every row must name the same optimizer families.")
        if set(self.law.init) != set(Role) or set(self.law.change) != set(Role):
            raise RuleError(f"Parameterization {self.name!r}: its law must state an exponent for every role.")

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(self.rows[Role.HIDDEN].rules)

    @property
    def optimizers(self) -> tuple[str, ...]:
        """The names in `mutransfer.OPTIMIZERS` that it has a column for."""
        return tuple(name for name, optimizer in OPTIMIZERS.items() if optimizer.family in self.families)

    def row(self, role: Role, *, constant: bool = False) -> Row:
        """The row of a role; `constant` says that the tensor's init is one constant."""
        if constant and self.constant_vector is not None and role in (Role.VECTOR, Role.INPUT):
            return self.constant_vector
        return self.rows[role]

    def rule(self, role: Role, optimizer: Optimizer, *, constant: bool = False) -> Rule:
        """Raises RuleError where the table has no column for the optimizer: nothing defaults to SP."""
        rules = self.row(role, constant=constant).rules
        if optimizer.family in rules:
            return rules[optimizer.family]
        raise RuleError(
            f"Parameterization {self.name!r} has no rule for optimizer {optimizer.name!r}; "
            f"it is defined for: {', '.join(self.optimizers)}. Choose one of those, or another parameterization."
        )

    def with_cell(
        self, role: Role, cell: str, change: Callable[[Scale], Scale], *, family: str | None = None
    ) -> Parameterization:
        """The table with one cell changed, to try another rule: `mup.with_cell(Role.HIDDEN, "lr", f, family="adam")`.

        Args:
            role: the row; a change of the vectors' is one of the constant vectors' too.
            cell: "init_std" or "multiplier"; with an optimizer family "lr", "eps" or "weight_decay".
            change: from the cell as it is to the one wanted.

        Raises:
            RuleError: there is no such cell.
        """
        known = [f.name for f in fields(Row if family is None else Rule) if f.name != "rules"]
        if cell not in known or family not in (None, *self.families):
            of = f"optimizer family {family!r}" if family else "all optimizers"
            raise RuleError(
                f"Parameterization {self.name!r} has no cell {cell!r} of {of}. With no family there are init_std and "
                f"multiplier; with one of {', '.join(self.families)} there are lr, eps and weight_decay."
            )

        def changed(row: Row) -> Row:
            cells = row if family is None else row.rules[family]
            changes: dict[str, Any] = {cell: change(getattr(cells, cell))}
            if family is not None:
                changes = {"rules": {**row.rules, family: replace(row.rules[family], **changes)}}
            return replace(row, **changes)

        constant = self.constant_vector
        if constant is not None and role is Role.VECTOR:
            constant = changed(constant)
        return replace(self, rows={**self.rows, role: changed(self.rows[role])}, constant_vector=constant)

    def gauge_of(self, role: Role, *, constant: bool = False) -> Scale:
        if constant and self.constant_vector is not None and role in (Role.VECTOR, Role.INPUT):
            return one
        return self.gauge.get(role, one)


def find_table(name: str | Parameterization, registry: Mapping[str, Parameterization]) -> Parameterization:
    """The table of that name; a table passes through, so that a user's own works wherever a name does."""
    if isinstance(name, Parameterization):
        return name
    if isinstance(name, str) and name in registry:
        return registry[name]
    raise RuleError(f"There is no parameterization {name!r}.{nearest(str(name), registry)}")
