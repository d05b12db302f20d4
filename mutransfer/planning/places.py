"""Which depth rule a parameter takes: in a branch that repeats, at the end of one, on the stream, or outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mutransfer.errors import RoleError
from mutransfer.planning.branches import Branch, stream_norms, unreached_siblings
from mutransfer.planning.lineage import Lineage
from mutransfer.planning.ops import Trace
from mutransfer.planning.templates import Templates
from mutransfer.rules.depth import Place


def assign_places(
    trace: Trace, branches: Sequence[Branch], templates: Templates, given: Mapping[str, Place] | None = None
) -> dict[str, Place]:
    """Every parameter's place: outside, inner, terminal, or norm on the stream.

    Args:
        trace: of the model, with what its layers declare for parameters that it does not reach.
        branches: those of it that repeat with depth.
        templates: of the model and a base of another depth.
        given: the user's own, which win.

    Raises:
        RoleError: a terminal that is used inside a branch as well, so that it can hold no factor; or a parameter of a
            block that the traced inputs do not reach and that is more than a gain or bias nobody reads.
    """
    inner = inner_parameters(trace, branches, templates)
    norms = _of_blocks(stream_norms(trace, branches), trace, templates)
    terminals = {name: branch for branch in branches for name in branch.terminals}
    for name, branch in terminals.items():
        if name not in (given or {}) and (name in inner or name in norms):
            raise RoleError(
                f"{name!r} ends the residual branch that {branch.module!r} adds, and is used inside a branch or on the "
                "stream too, so that it cannot take one depth rule. Untie the two, or use a table without depth rules."
            )
    places: dict[str, Place] = dict.fromkeys(trace.uses, Place.OUTSIDE) | dict.fromkeys(inner, Place.INNER)
    places |= dict.fromkeys(norms, Place.STREAM_NORM) | dict.fromkeys(terminals, Place.TERMINAL)
    places |= given or {}
    places |= dict.fromkeys(_unread(places, trace, templates, given or {}), Place.INNER)
    return places


def _of_blocks(norms: Sequence[str], trace: Trace, templates: Templates) -> frozenset[str]:
    """Norms of one template are all on the stream, the first block's too, though no branch has been added before it.
    A final norm is in no block, and outside."""
    known = {templates.of(name) for name in norms if templates.stack(name) is not None}
    return frozenset(name for name in trace.uses if templates.of(name) in known)


def unexplained(
    places: Mapping[str, Place], trace: Trace, branches: Sequence[Branch], templates: Templates
) -> tuple[str, ...]:
    """Parameters outside that stand in a block which repeats, and in no branch at all: no rule is known for them.

    Args:
        branches: all of the trace, so that blocks which add to a projection are known.
    """
    in_branches = inner_parameters(trace, branches, templates).union(*(branch.terminals for branch in branches))
    shortcuts = {templates.block(name) for b in branches if b.kind == "projection" for name in b.terminals}
    outside = [name for name, place in places.items() if place is Place.OUTSIDE and name not in in_branches]
    return tuple(n for n in outside if templates.stack(n) is not None and templates.block(n) not in shortcuts)


def _unread(places: Mapping[str, Place], trace: Trace, templates: Templates, given: Mapping[str, Place]) -> list[str]:
    """Gains and biases of a block that nothing reads, which no rule changes; anything else there is refused."""
    unreached = [
        name
        for name, uses in trace.uses.items()
        if places[name] is Place.OUTSIDE
        and name not in given
        and templates.stack(name) is not None
        and not any(u.reached for u in uses)
    ]
    for name in unreached:
        if {use.kind for use in trace.uses[name]} != {"elementwise"}:
            raise RoleError(
                f"{name!r} stands in a block that repeats with depth, and the traced inputs do not reach it: its depth "
                f"rule cannot be told. Give example_inputs= that reach it, or say what it is: roles={{{name!r}: "
                f"'{Place.INNER}'}} (or another of {', '.join(Place)})."
            )
    return unreached


def inner_parameters(trace: Trace, branches: Sequence[Branch], templates: Templates) -> frozenset[str]:
    """The parameters inside the branches, those that end them left out.

    They are used on the way from the stream to the add. What reaches the add from elsewhere (keys and values of
    another stack) is inside if it stands in a block.
    """
    lineage, norms = Lineage(trace), set(stream_norms(trace, branches))
    ends = frozenset().union(*(branch.ends for branch in branches))
    found: set[str] = set()
    for branch in branches:
        for index in _ops_inside(lineage, branch):
            begins = any(lineage.descends(value, branch.source) for value in trace.ops[index].inputs)
            used = () if index in ends else lineage.owners[index]
            found.update(name for name in used if begins or templates.stack(name) is not None)
    found -= norms
    blocks = {templates.block(name) for name in found}
    return frozenset(found | {name for name in unreached_siblings(found, trace) if templates.block(name) in blocks})


def _ops_inside(lineage: Lineage, branch: Branch) -> list[int]:
    """The ops that use parameters, that the add reads the results of, and that the stream beside it does not."""
    add = lineage.trace.ops[branch.op]
    end, skip = add.inputs[branch.operand], add.inputs[1 - branch.operand]
    return [
        index
        for index in lineage.owners
        if any(lineage.descends(end, v) and not lineage.descends(skip, v) for v in lineage.trace.ops[index].outputs)
    ]
