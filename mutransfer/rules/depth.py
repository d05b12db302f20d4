"""The depth rules: what a residual stack's parameters are multiplied by when it has more blocks than the base's.

Every factor multiplies the width table's cell of the same parameter. `m_depth` is the block count of the parameter's
own stack over the base's, `m_uses` how often a shared parameter is used over the base. A branch is multiplied by
m_depth^-alpha where it is added to the stream. The tables are those of the explicit form, with that multiplier in the
forward pass; its *terminal*, the last layer of the branch that owns parameters (weight and bias both), can hold it
instead, by the same symmetry that folds any other multiplier into init, lr, eps and decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from mutransfer.errors import RuleError
from mutransfer.rules.optimizers import Optimizer
from mutransfer.rules.scale import Scale, m_depth, m_uses, one
from mutransfer.rules.table import Rule


class Place(StrEnum):
    """Where a parameter stands in a residual stack."""

    OUTSIDE = "outside"
    """Of the branches that repeat with depth: embeddings, stem, final norm, readout, downsampling projections."""
    INNER = "inner"
    """In a branch, with another parameter between it and the stream."""
    TERMINAL = "terminal"
    """The last layer of a branch, which the branch's multiplier is on."""
    STREAM_NORM = "stream norm"
    """The gain or bias of a norm that the stream itself passes through (post-norm blocks)."""


@dataclass(frozen=True)
class DepthRow:
    """One place's cells, each a factor on the width table's.

    Attributes:
        rules: optimizer family -> lr, eps, weight decay.
        init: of the stored tensor.
        multiplier: forward, on the branch where it is added to the stream.
    """

    rules: Mapping[str, Rule]
    init: Scale = one
    multiplier: Scale = one

    def rule(self, optimizer: Optimizer) -> Rule:
        """Raises RuleError where there is no column for the optimizer: no depth rule is made up for it."""
        if optimizer.family in self.rules:
            return self.rules[optimizer.family]
        raise RuleError(
            f"There is no depth rule for optimizer {optimizer.name!r}; there are some for: {', '.join(self.rules)}. "
            "Choose one of those, or a table without depth rules."
        )


@dataclass(frozen=True)
class DepthLaw:
    """The exponents in depth that the coordinate check holds a table to, typed from theory and never computed from its
    cells: of every tensor's own contribution as it enters the stream.

    Attributes:
        init: place -> of W_0 x_0.
        change: place -> of (W_t - W_0) x_t.
    """

    init: Mapping[Place, float]
    change: Mapping[Place, float]

    def __post_init__(self) -> None:
        if set(self.init) != set(Place) or set(self.change) != set(Place):
            raise RuleError("A law of depth must state an exponent for every place.")


@dataclass(frozen=True)
class DepthTable:
    """The depth rules of a parameterization as data. The table checks itself when it is made.

    Attributes:
        name: the registry name.
        source: paper, table.
        rows: one per place.
        law: see `DepthLaw`.
        shares: whether one parameter may serve several blocks.
    """

    name: str
    source: str
    rows: Mapping[Place, DepthRow]
    law: DepthLaw
    shares: bool

    def __post_init__(self) -> None:
        missing = [place.value for place in Place if place not in self.rows]
        if missing:
            raise RuleError(f"Depth table {self.name!r} has no row for {', '.join(missing)}.")
        if len({frozenset(row.rules) for row in self.rows.values()}) != 1:
            raise RuleError(f"Depth table {self.name!r}: every row must name the same optimizer families.")

    def row(self, place: Place, *, shared: bool = False) -> DepthRow:
        """The row of a place; `shared` says that the parameter is used more often than at the base."""
        if not shared:
            return self.rows[place]
        if not self.shares:
            raise RuleError(
                f"{self.name!r} has no rule for a parameter that several blocks share. Use 'completep', or do not "
                "change the depth."
            )
        return _used_often(self.rows[place])


def _used_often(row: DepthRow) -> DepthRow:
    """A shared parameter's gradient is the sum over its uses: eps follows it, and SGD's lr makes up for it."""
    rules = {name: replace(rule, eps=rule.eps * SHARED.eps) for name, rule in row.rules.items()}
    sgd = row.rules["sgd"]
    rules["sgd"] = replace(sgd, lr=sgd.lr * SHARED.lr, weight_decay=sgd.weight_decay * SHARED.weight_decay)
    return replace(row, rules=rules)


SHARED = Rule(lr=1 / m_uses, eps=m_uses, weight_decay=m_uses)
"""On top of a parameter's own row: lr and decay of SGD, eps of Adam. Derived: rho uses add up rho gradients."""


def cells(*, adam: tuple[Scale, Scale, Scale], sgd: tuple[Scale, Scale]) -> Mapping[str, Rule]:
    """`adam` is (lr, eps, decoupled decay), `sgd` (lr, L2 decay). For decay inside Adam's gradient no law is known: it
    is constant."""
    return {
        "adam": Rule(*adam),
        "adam-l2": Rule(adam[0], adam[1]),
        "sgd": Rule(lr=sgd[0], weight_decay=sgd[1]),
    }


def law(*, terminal_init: float, terminal: float, inner: float, stream_norm: float) -> DepthLaw:
    """What is not named keeps its size."""
    flat = dict.fromkeys(Place, 0.0)
    change = {Place.TERMINAL: terminal, Place.INNER: inner, Place.STREAM_NORM: stream_norm}
    return DepthLaw(flat | {Place.TERMINAL: terminal_init}, flat | change)


WIDTH_ONLY_LAW = law(terminal_init=0, terminal=0, inner=0, stream_norm=0)
"""What a table without depth rules gives: nothing is scaled with depth."""

m = m_depth
OUTSIDE = DepthRow(cells(adam=(one, one, one), sgd=(one, one)))
# Derived, stated by no source: every one of m norms in a row acts on the whole stream.
STREAM_NORM = DepthRow(cells(adam=(1/m, one, m), sgd=(1/m, m)))  # fmt: skip

_SQRT = cells(adam=(m**-0.5, m**-0.5, one), sgd=(one, one))
_LINEAR = cells(adam=(one, 1/m, one), sgd=(m, 1/m))  # fmt: skip

DEPTH_MUP = DepthTable(
    name="depth-mup",
    source="Yang, Yu, Zhu & Hayou 2023, arXiv:2310.02244 (Depth-muP); Adam's eps and decay as in Dey et al. 2025, "
    "arXiv:2505.01618, Table 1 at alpha = 1/2; Zheng et al. 2026, arXiv:2603.00541, Tables 9 and 10",
    shares=False,
    law=law(terminal_init=-0.5, terminal=-1, inner=-0.5, stream_norm=-1),
    rows={
        Place.OUTSIDE: OUTSIDE,
        Place.INNER: DepthRow(_SQRT),
        Place.TERMINAL: DepthRow(_SQRT, multiplier=m**-0.5),
        Place.STREAM_NORM: STREAM_NORM,
    },
)

COMPLETEP = DepthTable(
    name="completep",
    source="Dey et al. 2025, arXiv:2505.01618, Table 1 at alpha = 1; Zheng et al. 2026, arXiv:2603.00541, Tables 3-7",
    shares=True,
    law=law(terminal_init=-1, terminal=-1, inner=0, stream_norm=-1),
    rows={
        Place.OUTSIDE: OUTSIDE,
        Place.INNER: DepthRow(_LINEAR),
        Place.TERMINAL: DepthRow(_LINEAR, multiplier=1 / m),
        Place.STREAM_NORM: STREAM_NORM,
    },
)
