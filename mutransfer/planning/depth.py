"""What a depth table does with a model: the residual branches that repeat, verified, and every parameter's place."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from mutransfer.errors import RoleError, RuleError, ShapeError, nearest
from mutransfer.planning.base import Base
from mutransfer.planning.branch_outputs import output_modules
from mutransfer.planning.branches import Branch, key_of
from mutransfer.planning.data import SwapPlan
from mutransfer.planning.ops import Trace
from mutransfer.planning.options import Options
from mutransfer.planning.places import (
    assign_places,
    beside_the_branches,
    in_no_branch,
    inner_parameters,
    readouts_of_blocks,
    unexplained,
)
from mutransfer.planning.proofs import Proofs, prove, small_enough
from mutransfer.planning.rebuild import Build
from mutransfer.planning.sides import Side, Sides, apart
from mutransfer.planning.stacks import Stacks, compare_depths, count_branches, use_ratios
from mutransfer.planning.templates import Templates
from mutransfer.planning.trace_base import BaseTrace, trace_base
from mutransfer.rules.depth import Place


@dataclass(frozen=True)
class Depth:
    """Every parameter's place in the residual stacks; empty where nothing is to be done with depth.

    Attributes:
        places: parameter -> place; one that is missing is outside.
        m_depth: parameter -> how much deeper its stack is than the base's.
        m_uses: parameter -> how much more often than at the base it is used.
        offset: gains that enter as 1 + w and end a branch.
        modules: module that returns a branch which no parameter can be multiplied in -> how much deeper its stack is.
        towers: traces of the parts of the model that its inputs do not reach, and that were run alone.
    """

    places: Mapping[str, Place] = field(default_factory=dict)
    m_depth: Mapping[str, float] = field(default_factory=dict)
    m_uses: Mapping[str, float] = field(default_factory=dict)
    offset: frozenset[str] = frozenset()
    modules: Mapping[str, float] = field(default_factory=dict)
    towers: tuple[Trace, ...] = ()

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

    def swaps(self, options: Options) -> tuple[SwapPlan, ...]:
        """The modules whose results are multiplied, where that is not by 1."""
        if options.table.depth is None:
            return ()
        cell, own = options.table.depth.row(Place.TERMINAL).multiplier, options.hyperparameters.residual_mult
        factors = {path: cell.at(m_depth=m, m_uses=1.0) * own for path, m in self.modules.items()}
        return tuple(SwapPlan(path, "", factor, "output") for path, factor in factors.items() if factor != 1.0)

    def notes(self, options: Options) -> tuple[str, ...]:
        """What a user should know of them."""
        swaps = self.swaps(options)
        why = f"no parameter can hold the multiplier of {len(swaps)} residual branches"
        return (f"{why}: what {swaps[0].module!r} returns, and the like, is multiplied by it",) if swaps else ()

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


def plan_depth(known: Base, model: nn.Module, traced: Trace, base: BaseTrace | None, options: Options) -> Depth:
    """The places of a model's parameters, and how much deeper than the base their stacks are.

    Args:
        known: the base.
        model: in evaluation mode.
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
    at_base = Side.of(base.model, base.trace, base.inputs, known.build)
    return _plan(known, known.build, Sides(at_base, Side.of(model, traced)), options)


def _plan(known: Base, build: Build, whole: Sides, options: Options) -> Depth:
    stacks, uses = _counted(known.stacks, [whole])
    templates = stacks.templates
    if not stacks.deeper and not uses:
        if options.hyperparameters.residual_mult == 1.0:
            return Depth()
        whole, templates = _with_deeper(known, whole)
    parts = apart(whole, templates)
    stacks, uses = _counted(known.stacks, parts)
    given = _given_places(whole.own.trace.uses, options.places)
    found = _placed(build, whole.base, parts, given, templates, options)
    places = {name: place for part in found for name, place in part.places.items()}
    _refuse_unexplained([name for part in found for name in part.lost], places, templates)
    return Depth(
        places,
        {name: stacks.m_depth(name) * uses.get(name, 1.0) for name in places},
        uses,
        frozenset().union(*(part.offset for part in found)),
        {path: stacks.m_depth(path) for part in found for path in part.modules},
        tuple(part.own.trace for part in parts[1:]),
    )


def _counted(stacks: Stacks, parts: Sequence[Sides]) -> tuple[Stacks, dict[str, float]]:
    """The stacks, counted by their residual blocks, and how much more often than at the base a parameter is used."""
    uses: dict[str, float] = {}
    for part in parts:
        stacks = count_branches(stacks, part.base.branches, part.own.branches)
        uses |= use_ratios(part.base.trace, part.own.trace, stacks)
    return stacks, uses


@dataclass(frozen=True)
class _Placed:
    """What was found out about the whole less its towers, or about a tower.

    Attributes:
        lost: parameters of blocks that repeat, and that stand in no branch.
        offset, modules: see `Depth`.
    """

    places: Mapping[str, Place]
    lost: Sequence[str]
    offset: frozenset[str]
    modules: Sequence[str]


def _placed(
    build: Build,
    base: Side,
    parts: Sequence[Sides],
    given: Mapping[str, Place],
    templates: Templates,
    options: Options,
) -> list[_Placed]:
    """Every part's parameters in their places, once their branches are proven on the base, the whole one."""
    keys = [part.repeating_keys(templates) for part in parts]
    repeating = [
        [branch for branch in part.own.branches if key_of(branch, templates) in known]
        for part, known in zip(parts, keys, strict=True)
    ]
    if not any(repeating) and not given:
        raise RoleError(
            "Base and model differ in depth, and no residual branch was found whose number grows with it: depth rules "
            "are for residual stacks. Use a table of widths only, with a base of the model's depth."
        )
    small = small_enough(build, base) if any(repeating) else None
    found = []
    for part, known, branches in zip(parts, keys, repeating, strict=True):
        own = {name: place for name, place in given.items() if name in part.own.trace.uses}
        proofs = prove(small, part, known, templates) if branches else Proofs({})
        modules = _settle(branches, proofs, part.own.trace, own, templates, options)
        settled = [replace(b, terminals=(), ends=frozenset()) if b.number in modules else b for b in branches]
        found.append(_place(part, settled, own, templates, list(modules.values())))
    return found


def _place(
    part: Sides, branches: Sequence[Branch], given: Mapping[str, Place], templates: Templates, modules: Sequence[str]
) -> _Placed:
    trace = part.own.trace
    of_one, of_other = (readouts_of_blocks(side.trace, side.branches, templates) for side in (part.base, part.own))
    heads = of_one & of_other
    places = assign_places(trace, branches, templates, given, heads)
    lost = [name for name in unexplained(places, trace, part.own.branches, templates, heads) if name not in given]
    offset = frozenset().union(*(branch.offset for branch in branches))
    return _Placed(places, lost and _repeated(lost, part, templates), offset, modules)


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


def _with_deeper(known: Base, whole: Sides) -> tuple[Sides, Templates]:
    """A deeper base beside the two, which tells what repeats where base and model are of one depth."""
    if known.deeper is None:
        raise RuleError(
            "residual_mult scales the branches that repeat with depth, and a base of the model's own depth does not "
            "tell which. Give base= as a width with base_depth=, so that a deeper one can be built."
        )
    seen = trace_base(known.deeper, whole.base.inputs, evaluated=True)
    deeper = Side.of(seen.model, seen.trace, seen.inputs, known.deeper)
    templates = compare_depths(whole.base.trace.uses, deeper.trace.uses).templates
    return replace(whole, deeper=deeper), templates


def _repeated(lost: Sequence[str], part: Sides, templates: Templates) -> list[str]:
    """Of the parameters in no branch, those that may repeat: the others are as many at any depth, and stand before or
    behind the branches of their stack."""
    own = part.own
    every = in_no_branch(own.trace, own.branches, templates)
    beside = beside_the_branches(every, own.trace, own.branches, templates)
    few, many = (
        Counter(templates.of(name) for name in in_no_branch(side.trace, side.branches, templates))
        for side in (part.base, part.deeper or own)
    )
    fixed = {template for template, count in many.items() if few[template] == count}
    return [name for name in lost if name not in beside or templates.of(name) not in fixed]


def _settle(
    branches: Sequence[Branch],
    proofs: Proofs,
    trace: Trace,
    given: Mapping[str, Place],
    templates: Templates,
    options: Options,
) -> dict[int, str]:
    """Number of a branch that none of its parameters can be multiplied in -> the module that returns it.

    The user's word settles a branch: the place of one of its parameters.
    """
    modules: dict[int, str] = {}
    for branch in branches:
        why, template = _verdict(branch, proofs, templates)
        inside = {*inner_parameters(trace, [branch], templates), *branch.terminals} if why else {}
        if not why or set(inside) & set(given):
            continue
        path = next((p for p in output_modules(trace, branch) if templates.of(p) == template), None)
        if path is not None and options.form != "folded" and options.init != "keep":
            modules[branch.number] = path
            continue
        last = (branch.terminals or sorted(inside) or [f"{branch.module}.*"])[0]
        _refuse_unproven(branch, why, path, templates.of(last))
    return modules


def _verdict(branch: Branch, proofs: Proofs, templates: Templates) -> tuple[str, str | None]:
    """Why a branch's terminals cannot hold its multiplier ("" where they can), and the template of the module whose
    result can."""
    if branch.kind == "projection":
        return "it is added to a projection of the stream, and repeats with depth", None
    key = key_of(branch, templates)
    return proofs.why.get(key, "the base has none like it, a deeper one may"), proofs.outputs.get(key)


def _refuse_unproven(branch: Branch, why: str, path: str | None, last: str) -> None:
    if path is not None:
        raise RoleError(
            f"The residual branch that {branch.module!r} adds repeats with depth, and {why}: its multiplier can only "
            f"be put on what {path!r} returns, and form='folded' and init='keep' leave the forward pass as it is. Use "
            "form='auto' and another init, or a table without depth rules."
        )
    raise RoleError(
        f"The residual branch that {branch.module!r} adds repeats with depth, and is not proven to be its last layer's "
        f"multiple: {why}. Say which parameters end it with roles={{{last!r}: '{Place.TERMINAL}'}}, or use a table "
        "without depth rules."
    )


def _given_places(names: Mapping[str, object], patterns: Mapping[str, Place]) -> dict[str, Place]:
    given: dict[str, Place] = {}
    for pattern, place in patterns.items():
        matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            raise RoleError(f"Role pattern {pattern!r} matched no parameter.{nearest(pattern, names)}")
        given |= dict.fromkeys(matched, place)
    return given


def _refuse_unexplained(lost: Sequence[str], places: Mapping[str, Place], templates: Templates) -> None:
    if lost:
        pattern = templates.of(lost[0])
        if any(fnmatch.fnmatchcase(name, pattern) for name in places.keys() - set(lost)):
            pattern = lost[0]  # of a flat list of layers the index is all that tells a parameter from others
        raise RoleError(
            f"{lost[0]!r} stands in a block that repeats with depth, and in no residual branch: no depth rule is known "
            "for it. Give a base with as many of these blocks, say what it is with "
            f"roles={{{pattern!r}: '{Place.INNER}'}} (one of {', '.join(Place)}), or use a table without depth rules."
        )
