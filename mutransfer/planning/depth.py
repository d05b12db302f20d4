"""What a depth table does with a model: the residual branches that repeat, verified, and every parameter's place."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mutransfer.errors import RoleError, RuleError, ShapeError, nearest
from mutransfer.planning.base import Base
from mutransfer.planning.branches import Branch, find_branches, key_of, repeating
from mutransfer.planning.inputs import find_inputs
from mutransfer.planning.ops import Trace
from mutransfer.planning.options import Options
from mutransfer.planning.places import assign_places, inner_parameters, unexplained
from mutransfer.planning.rebuild import Build, has_config
from mutransfer.planning.shrink import shrink
from mutransfer.planning.sizes import without_memory
from mutransfer.planning.stacks import Stacks, compare_depths, count_branches, use_ratios
from mutransfer.planning.templates import Templates
from mutransfer.planning.trace_base import BaseTrace, trace_base
from mutransfer.planning.verify import verify
from mutransfer.rules.depth import Place

Key = tuple[str, ...]
MOST_VERIFIED = 2**25
"""Parameters of the largest base whose branches are tried in float64, forward and backward."""


@dataclass(frozen=True)
class Depth:
    """Every parameter's place in the residual stacks; empty where nothing is to be done with depth.

    Attributes:
        places: parameter -> place; one that is missing is outside.
        m_depth: parameter -> how much deeper its stack is than the base's.
        m_uses: parameter -> how much more often than at the base it is used.
        offset: gains that enter as 1 + w and end a branch.
    """

    places: Mapping[str, Place] = field(default_factory=dict)
    m_depth: Mapping[str, float] = field(default_factory=dict)
    m_uses: Mapping[str, float] = field(default_factory=dict)
    offset: frozenset[str] = frozenset()

    def place(self, name: str) -> Place:
        return self.places.get(name, Place.OUTSIDE)

    def factors(self, name: str, options: Options) -> Factors:
        """The cells of a parameter's place at its own ratios."""
        if options.table.depth is None or not self.places:
            return Factors()
        row = options.table.depth.row(self.place(name), shared=name in self.m_uses)
        rule = row.rule(options.optimizer)
        ratios = {"m_depth": self.m_depth.get(name, 1.0), "m_uses": self.m_uses.get(name, 1.0)}
        own = options.hyperparameters.residual_mult if self.place(name) is Place.TERMINAL else 1.0
        cells = (row.init, rule.lr, rule.eps, rule.weight_decay, row.multiplier)
        init, lr, eps, weight_decay, multiplier = (cell.at(**ratios) for cell in cells)
        return Factors(init, lr, eps, weight_decay, multiplier * own, self.why(name))

    def why(self, name: str) -> str:
        """What is added to the reason of a parameter's line."""
        words = _WORDS.get(self.place(name))
        return f"; {words}, {self.m_depth[name]:.4g} times as deep" if words else ""


_WORDS = {
    Place.INNER: "inside a residual branch",
    Place.TERMINAL: "ends a residual branch",
    Place.STREAM_NORM: "a norm on the stream",
}


@dataclass(frozen=True)
class Factors:
    """A place's cells at one parameter's ratios."""

    init: float = 1.0
    lr: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0
    multiplier: float = 1.0
    why: str = ""


def plan_depth(known: Base, traced: Trace, base: BaseTrace | None, options: Options) -> Depth:
    """The places of a model's parameters, and how much deeper than the base their stacks are.

    Args:
        known: the base.
        traced, base: of the model and of the base, in evaluation mode: dropped branches and layers are not seen.

    Raises:
        RuleError, RoleError, ShapeError: a base of another depth under a table of widths only, or one that cannot be
            built; a branch that repeats and is not proven to be its last layer's multiple; a parameter without a place.
    """
    mult = options.hyperparameters.residual_mult
    if options.table.depth is None:
        _refuse_other_depth(known.stacks, options.table.name)
        return Depth()
    if known.build is None or base is None:
        _refuse_unbuilt(known.stacks, mult)
        return Depth()
    return _plan(known, known.build, _Side.of(traced), _Side.of(base.trace, base.inputs), options)


def _plan(known: Base, build: Build, own: _Side, base: _Side, options: Options) -> Depth:
    mult = options.hyperparameters.residual_mult
    stacks = count_branches(known.stacks, base.branches, own.branches)
    uses = use_ratios(base.trace, own.trace, stacks)
    if not stacks.deeper and not uses and mult == 1.0:
        return Depth()
    deep, templates = (own, stacks.templates) if stacks.deeper or uses else _deeper(known, base)
    keys = _repeating_keys(base, deep, templates)
    branches = [branch for branch in own.branches if key_of(branch, templates) in keys]
    given = _given_places(own.trace.uses, options.places)
    if branches:
        proofs = _proofs(build, base, keys, templates)
        for branch in branches:
            _refuse_unproven(branch, proofs, own.trace, given, templates)
    elif not given:
        raise RoleError(
            "Base and model differ in depth, and no residual branch was found whose number grows with it: depth rules "
            "are for residual stacks. Use a table of widths only, with a base of the model's depth."
        )
    places = assign_places(own.trace, branches, templates, given)
    _refuse_unexplained(places, own, given, templates)
    return Depth(
        places,
        {name: stacks.m_depth(name) * uses.get(name, 1.0) for name in places},
        uses,
        frozenset().union(*(branch.offset for branch in branches)),
    )


@dataclass(frozen=True)
class _Side:
    """One model's trace, evaluated, and its residual branches."""

    trace: Trace
    branches: tuple[Branch, ...]
    inputs: Any = None

    @classmethod
    def of(cls, traced: Trace, inputs: Any = None) -> _Side:
        return cls(traced, find_branches(traced), inputs)


def _refuse_other_depth(stacks: Stacks, table: str) -> None:
    for stack in stacks.deeper:
        at_base, here = stacks.counts[stack]
        raise RuleError(
            f"The base has {at_base} blocks {stack!r} and the model {here}, and {table!r} is a table of widths only. "
            "Give a base of the model's depth, or use 'completep' or 'depth-mup'."
        )


def _refuse_unbuilt(stacks: Stacks, residual_mult: float) -> None:
    if stacks.deeper or residual_mult != 1.0:
        raise ShapeError(
            "A saved plan does not tell which residual branches repeat with depth. Give the base as a model, as config "
            "fields, or as a width with base_depth=."
        )


def _deeper(known: Base, base: _Side) -> tuple[_Side, Templates]:
    """A deeper base, which tells what repeats where base and model are of one depth."""
    if known.deeper is None:
        raise RuleError(
            "residual_mult scales the branches that repeat with depth, and a base of the model's own depth does not "
            "tell which. Give base= as a width with base_depth=, so that a deeper one can be built."
        )
    seen = trace_base(known.deeper, base.inputs, evaluated=True)
    deeper = _Side.of(seen.trace, seen.inputs)
    return deeper, compare_depths(base.trace.uses, deeper.trace.uses).templates


def _repeating_keys(one: _Side, other: _Side, templates: Templates) -> set[Key]:
    """Of the branches whose number grows from the shallower to the deeper of the two, whichever that is."""
    growing = (*repeating(one.branches, other.branches, templates), *repeating(other.branches, one.branches, templates))
    return {key_of(branch, templates) for branch in growing}


def _proofs(build: Build, base: _Side, keys: set[Key], templates: Templates) -> dict[Key, str]:
    """Branch -> why its terminal is not proven to be able to hold its multiplier; "" where it is."""
    found = _small_enough(build, base)
    if found is None:
        why = f"a base of more than {MOST_VERIFIED:,} parameters is too large to try it, and could not be made smaller"
        return dict.fromkeys(keys, why)
    model, tried = found
    chosen = [branch for branch in tried.branches if key_of(branch, templates) in keys]
    return {key_of(verdict.branch, templates): verdict.why for verdict in verify(model, tried.inputs, chosen)}


def _small_enough(build: Build, base: _Side) -> tuple[nn.Module, _Side] | None:
    """The base with values, or where it is large, one of its kind that is cut to a small size: its blocks are alike."""
    module = without_memory(build)
    if sum(p.numel() for p in module.parameters()) <= MOST_VERIFIED:
        return build(), base
    if not has_config(module):
        return None
    make = type(module)

    def accept(config: Any) -> None:
        find_inputs(make(config), None)

    try:
        model = make(shrink(module.config, accept).config)
    except ShapeError:
        return None
    seen = trace_base(lambda: model, find_inputs(model, None), evaluated=True)
    return model, _Side.of(seen.trace, seen.inputs)


def _refuse_unproven(
    branch: Branch, proofs: Mapping[Key, str], trace: Trace, given: Mapping[str, Place], templates: Templates
) -> None:
    """The user's word settles a branch: the place of one of its parameters."""
    why = proofs.get(key_of(branch, templates), "the base has none like it")
    if branch.kind == "projection":
        why = "it is added to a projection of the stream, and repeats with depth"
    if not why:
        return
    inside = {*inner_parameters(trace, [branch], templates), *branch.terminals}
    if inside & set(given):
        return
    last = (branch.terminals or sorted(inside) or [f"{branch.module}.*"])[0]
    raise RoleError(
        f"The residual branch that {branch.module!r} adds repeats with depth, and is not proven to be its last layer's "
        f"multiple: {why}. Say which parameters end it with roles={{{templates.of(last)!r}: '{Place.TERMINAL}'}}, or "
        "use a table without depth rules."
    )


def _given_places(names: Mapping[str, object], patterns: Mapping[str, Place]) -> dict[str, Place]:
    given: dict[str, Place] = {}
    for pattern, place in patterns.items():
        matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            raise RoleError(f"Role pattern {pattern!r} matched no parameter.{nearest(pattern, names)}")
        given |= dict.fromkeys(matched, place)
    return given


def _refuse_unexplained(
    places: Mapping[str, Place], own: _Side, given: Mapping[str, Place], templates: Templates
) -> None:
    lost = [name for name in unexplained(places, own.trace, own.branches, templates) if name not in given]
    if lost:
        pattern = templates.of(lost[0])
        if any(fnmatch.fnmatchcase(name, pattern) for name in places.keys() - set(lost)):
            pattern = lost[0]  # of a flat list of layers the index is all that tells a parameter from others
        raise RoleError(
            f"{lost[0]!r} stands in a block that repeats with depth, and in no residual branch: no depth rule is known "
            f"for it. Say what it is with roles={{{pattern!r}: '{Place.INNER}'}} (one of "
            f"{', '.join(Place)}), or use a table without depth rules."
        )
