"""Which depth rule a parameter takes: in a branch that repeats, at the end of one, on the stream, or outside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from mutransfer.errors import RoleError
from mutransfer.planning.branches import Branch, stream_norms, unreached_siblings
from mutransfer.planning.lineage import Lineage
from mutransfer.planning.ops import Op, Trace
from mutransfer.planning.stacks import block_of
from mutransfer.planning.templates import Templates
from mutransfer.rules.depth import Place

_SUMS = {"add", "sub", "sum", "mean"}


def assign_places(
    trace: Trace,
    branches: Sequence[Branch],
    templates: Templates,
    given: Mapping[str, Place] | None = None,
    readouts: Collection[str] = (),
) -> dict[str, Place]:
    """Every parameter's place: outside, inner, terminal, or norm on the stream.

    Args:
        trace: of the model, with what its layers declare for parameters that it does not reach.
        branches: those of it that repeat with depth.
        templates: of the model and a base of another depth.
        given: the user's own, which win.
        readouts: templates of what is outside, reached or not. See `readouts_of_blocks`.

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
    settled = {*(given or {}), *(name for name in trace.uses if templates.of(name) in readouts)}
    places |= dict.fromkeys(_unread(places, trace, templates, settled), Place.INNER)
    return places


def _of_blocks(norms: Sequence[str], trace: Trace, templates: Templates) -> frozenset[str]:
    """Norms of one template are all on the stream, the first block's too, though no branch has been added before it.
    A final norm is in no block, and outside."""
    known = {templates.of(name) for name in norms if templates.stack(name) is not None}
    return frozenset(name for name in trace.uses if templates.of(name) in known)


def unexplained(
    places: Mapping[str, Place],
    trace: Trace,
    branches: Sequence[Branch],
    templates: Templates,
    readouts: Collection[str] = (),
) -> tuple[str, ...]:
    """Parameters outside that stand in a block which repeats, and in no branch at all: no rule is known for them.

    Args:
        branches: all of the trace, so that blocks which add to a projection are known.
        readouts: as for `assign_places`.
    """
    lost = {n for n in in_no_branch(trace, branches, templates) if templates.of(n) not in readouts}
    return tuple(name for name, place in places.items() if place is Place.OUTSIDE and name in lost)


def readouts_of_blocks(trace: Trace, branches: Sequence[Branch], templates: Templates) -> frozenset[str]:
    """Templates of parameters in stacks that have one part for every block of another stack, which reads the stream
    there and whose result leaves the model: auxiliary heads. Not of layers in a row, nor where two of them are summed.

    Args:
        branches: all of the trace.
    """
    lineage, adds = Lineage(trace), [trace.ops[branch.op] for branch in branches]
    adding = {templates.stack(name) for branch in branches for name in (branch.module, *branch.terminals)}
    parts: dict[str, dict[str, list[Op]]] = {}
    for name in trace.uses:
        stack = templates.stack(name)
        if stack is not None and stack not in adding:
            parts.setdefault(stack, {}).setdefault(block_of(name, templates), []).extend(_ops_of(name, trace))
    heads = {
        stack for stack, own in parts.items() if any(own.values()) and _are_apart(lineage, list(own.values()), adds)
    }
    return frozenset(templates.of(name) for name in trace.uses if templates.stack(name) in heads)


def _are_apart(lineage: Lineage, parts: Sequence[Sequence[Op]], adds: Sequence[Op]) -> bool:
    """Whether no residual sum reads what the parts give, and no part reads, or is summed with, another one."""
    made = [[value for op in part for value in op.outputs] for part in parts]

    def behind(op: Op) -> set[int]:
        return {n for n, own in enumerate(made) if any(lineage.descends(v, out) for v in op.inputs for out in own)}

    own = {lineage.trace.index(op): {number} for number, part in enumerate(parts) for op in part}
    joins = [op for i, op in enumerate(lineage.trace.ops) if i in own or op.name.rstrip("_") in _SUMS]
    met = (behind(op) | own.get(lineage.trace.index(op), set()) for op in joins)
    return not any(map(behind, adds)) and all(len(numbers) < 2 for numbers in met)


def in_no_branch(trace: Trace, branches: Sequence[Branch], templates: Templates) -> frozenset[str]:
    """Parameters of blocks that are in none of a trace's branches, nor beside a projection or on the stream."""
    in_branches = inner_parameters(trace, branches, templates).union(*(branch.terminals for branch in branches))
    norms = _of_blocks(stream_norms(trace, branches), trace, templates)
    shortcuts = {templates.block(name) for b in branches if b.kind == "projection" for name in b.terminals}
    others = (name for name in trace.uses if name not in in_branches and name not in norms)
    return frozenset(n for n in others if templates.stack(n) is not None and templates.block(n) not in shortcuts)


def beside_the_branches(
    lost: Collection[str], trace: Trace, branches: Sequence[Branch], templates: Templates
) -> frozenset[str]:
    """Those of the parameters in no branch that are used before the first branch of their stack is added, or behind the
    last one, or between two by a block that is on the stream: a stem, a downsampling or a final norm in one list with
    the blocks.

    A parameter that has its like in a branch may be a part of one that was not seen, unless its block has no branch at
    all and everything that the next branch is added to has come through it.

    Args:
        lost: the parameters in no branch.
    """
    lineage, adds = Lineage(trace), _adds_of_stacks(trace, branches, templates)
    alike = {templates.of(name) for name in trace.uses.keys() - lost}
    passed = _passed_blocks(lost, lineage, adds, templates)
    found = set()
    for name in lost:
        used, own = _ops_of(name, trace), [op for op, _ in adds.get(templates.stack(name), [])]
        before = not any(_reads(lineage, op, add) for op in used for add in own)
        behind = not any(_reads(lineage, add, op) for op in used for add in own)
        unlike = templates.of(name) not in alike
        if used and own and (block_of(name, templates) in passed or (unlike and (before or behind))):
            found.add(name)
    return frozenset(found)


_Adds = Mapping[str | None, list[tuple[Op, int]]]


def _adds_of_stacks(trace: Trace, branches: Sequence[Branch], templates: Templates) -> _Adds:
    """Stack -> its residual adds in execution order, and which of an add's operands the stream is."""
    adds: dict[str | None, list[tuple[Op, int]]] = {}
    for branch in branches:
        for stack in dict.fromkeys(map(templates.stack, branch.terminals or (branch.module,))):
            adds.setdefault(stack, []).append((trace.ops[branch.op], 1 - branch.operand))
    return adds


def _passed_blocks(lost: Collection[str], lineage: Lineage, adds: _Adds, templates: Templates) -> set[str]:
    """Blocks without any branch that all of what their stack's next branch is added to has come through."""
    uses = lineage.trace.uses
    mixed = {block_of(name, templates) for name in uses.keys() - lost}
    passed: set[str] = set()
    for name in reversed([name for name in uses if name in lost]):  # the last op of a block is the likeliest
        stack, block = templates.stack(name), block_of(name, templates)
        if stack in adds and block not in mixed | passed:
            for op in _ops_of(name, lineage.trace):
                readers = (add.inputs[stream] for add, stream in adds[stack] if _reads(lineage, add, op))
                following = next(readers, None)
                passed |= {block} if following is not None and not _bypassed(lineage, op, following) else set()
    return passed


def _ops_of(name: str, trace: Trace) -> list[Op]:
    return [trace.ops[use.op] for use in trace.uses[name] if use.reached and use.op >= 0]


def _reads(lineage: Lineage, op: Op, other: Op) -> bool:
    """Whether an op is computed from what another one gives."""
    return any(lineage.descends(value, result) for value in op.inputs for result in other.outputs)


def _bypassed(lineage: Lineage, op: Op, value: int) -> bool:
    """Whether a value has also come from the inputs, or from what an op reads, by a way around that op."""
    waiting, seen = [value], set(op.outputs)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if any(lineage.descends(value, result) for result in op.outputs):
            producer = lineage.trace.producer(value)
            waiting += producer.inputs if producer is not None else ()
        elif lineage.is_activation(value) or any(lineage.descends(read, value) for read in op.inputs):
            return True
    return False


def _unread(places: Mapping[str, Place], trace: Trace, templates: Templates, given: Collection[str]) -> list[str]:
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
