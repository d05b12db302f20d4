"""The residual branches of a traced model: every `add(x, f(x))` on a stream, what ends each, which repeat."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mutransfer.planning.lineage import Lineage
from mutransfer.planning.ops import VIEWS, Op, Trace
from mutransfer.planning.templates import Templates
from mutransfer.planning.terminals import Terminal, find_terminal

Kind = Literal["plain", "parallel", "experts", "norm-ended", "layer-scale", "post-norm", "projection"]
"""How a branch ends or is added: one layer; several summed; a routed sum; a norm (sandwich, ResNet); a gain of its own;
one layer, and a norm on the stream behind the sum; summed with a projection of the stream instead of the stream."""


@dataclass(frozen=True)
class Branch:
    """One residual branch.

    Attributes:
        number: its place among the branches of its trace, in execution order.
        op: index of the add in `Trace.ops`.
        operand: which of the add's inputs is the branch; the other one is the stream.
        module: path of the module that adds.
        kind: see `Kind`.
        terminals: the last parameters that all of it is proportional to, weight and bias both.
        offset: those of them that enter as a number plus themselves, as in a gain that is 1 + w.
        blocked_by: the op that a factor does not pass through, where there are no terminals.
        ends: the ops that use them there.
        source: the value of the stream that it is computed from.
        inside: number of the branch that this one is a part of.
    """

    number: int
    op: int
    operand: int
    module: str
    kind: Kind
    terminals: tuple[str, ...]
    ends: frozenset[int] = frozenset()
    source: int = -1
    offset: frozenset[str] = frozenset()
    blocked_by: str = ""
    inside: int | None = None

    @property
    def ends_in_nonlinearity(self) -> bool:
        """No parameter of it can hold its multiplier."""
        return not self.terminals


@dataclass
class _Add:
    """A residual add before it is told what it is: x + f(x), f computed from `source` on the same stream as x."""

    op: int
    result: int
    skip: int
    branch: int
    source: int
    projected: bool = False
    inside: int | None = None


def find_branches(trace: Trace) -> tuple[Branch, ...]:
    """Every residual branch in execution order.

    An add is one where one operand is computed from the other by way of a contraction, so that rotations, written-out
    activation functions and masks are none; where both are projections of one value, only if a stream starts there.
    """
    lineage = Lineage(trace)
    adds = _residual_adds(lineage)
    normed = {add.result for _, add in _stream_norms(lineage, adds)}
    return tuple(_branch(lineage, number, add, add.result in normed) for number, add in enumerate(adds))


def stream_norms(trace: Trace, branches: Sequence[Branch]) -> tuple[str, ...]:
    """Gains and biases that the stream itself passes through: of norms (post-norm blocks), in execution order, and of
    its own (a scaled skip connection)."""
    lineage = Lineage(trace)
    known = {branch.op for branch in branches}
    adds = [add for add in _residual_adds(lineage) if add.op in known]
    norms = [name for names, _ in _stream_norms(lineage, adds) for name in names]
    return tuple(dict.fromkeys([*norms, *_stream_gains(lineage, adds)]))


def _stream_gains(lineage: Lineage, adds: Sequence[_Add]) -> list[str]:
    """Gains that multiply the stream behind a residual add, and no norm between."""
    results = {add.result for add in adds}
    found: dict[str, None] = {}
    for add in adds:
        stream = lineage.stream(add.skip)
        for at, value in enumerate(stream):
            op = lineage.trace.producer(value)
            if op is not None and not results.isdisjoint(stream[at + 1 :]):
                found |= dict.fromkeys(lineage.gains(op))
    return list(found)


def repeating(shallow: Sequence[Branch], deep: Sequence[Branch], templates: Templates) -> tuple[Branch, ...]:
    """Those of the deeper trace whose number grows with depth.

    What is a part of another branch repeats only if that branch has more of them: a fixed inner sum of every block is
    part of the block, and scales with nothing. A sum with a projection can be told only where a block without one
    follows, so that one which the shallower trace has none of is no new one. A block of another kind (a dense one
    before those with experts) is one of its stack.
    """
    few, many = _most(shallow, templates), _most(deep, templates)
    known = [b for b in deep if b.kind != "projection" or key_of(b, templates) in few]
    growing = [b for b in known if many[key_of(b, templates)] > few.get(key_of(b, templates), 0)]
    stacks = {(_stack(b, templates), b.inside) for b in growing}
    beside = [b for b in known if b.kind != "projection" and _stack(b, templates) is not None]
    return tuple(b for b in deep if b in growing or (b in beside and (_stack(b, templates), b.inside) in stacks))


def _stack(branch: Branch, templates: Templates) -> str | None:
    return templates.stack(branch.terminals[0] if branch.terminals else branch.module)


def key_of(branch: Branch, templates: Templates) -> tuple[str, ...]:
    """What a branch has in common with those of the other blocks, and of the base."""
    ends = sorted(set(map(templates.of, branch.terminals)))  # experts in the order in which they were chosen
    return (templates.of(branch.module), "onto a projection" * (branch.kind == "projection"), branch.blocked_by, *ends)


def _most(branches: Sequence[Branch], templates: Templates) -> dict[tuple[str, ...], int]:
    """Branch, block indices left out -> how many there are, in the enclosing branch that has the most."""
    counts = Counter((branch.inside, key_of(branch, templates)) for branch in branches)
    most: dict[tuple[str, ...], int] = {}
    for (_, key), count in counts.items():
        most[key] = max(count, most.get(key, 0))
    return most


def _residual_adds(lineage: Lineage) -> list[_Add]:
    adds: list[_Add] = []
    candidates: list[_Add] = []
    for index, op in enumerate(lineage.trace.ops):
        if not _may_be_residual(lineage, index, op):
            continue
        add = _residual(lineage, index, op)
        if add is not None and lineage.is_activation(add.skip):
            adds.append(add)
            lineage.join(add.result, add.skip)
        elif (begins := add or _projection(lineage, index, op)) is not None:
            candidates.append(begins)
    adds = _going_on(lineage, adds)
    adds += _beginning(lineage, adds, candidates)
    adds.sort(key=lambda add: add.op)
    for number, add in enumerate(adds):
        add.inside = _enclosing(lineage, adds, number)
    return adds


def _going_on(lineage: Lineage, adds: Sequence[_Add]) -> list[_Add]:
    """Less sums with what no input reaches that are no stream: positions in front of an attention, which has read them
    before."""
    streams = {value for add in adds for value in _through_norms(lineage, add.skip)}
    producers = ((add, lineage.trace.producer(add.skip)) for add in adds)
    reached = ((add, add.skip in lineage.trace.given if op is None else not op.static) for add, op in producers)
    return [add for add, is_reached in reached if is_reached or add.result in streams]


def _beginning(lineage: Lineage, adds: Sequence[_Add], candidates: Sequence[_Add]) -> list[_Add]:
    """The candidates whose result is a stream: onto a projection, or onto what no input reaches (learned queries).

    A constant that is added to a stream (positions) is none: that stream has been added to before.
    """
    results = {add.result for add in adds}
    streams = {value for add in adds for value in _through_norms(lineage, add.skip)}
    continued = (c for c in candidates if c.result in streams)
    return [c for c in continued if c.projected or results.isdisjoint(_through_norms(lineage, c.branch))]


def _through_norms(lineage: Lineage, value: int) -> list[int]:
    """A stream, and where it begins with a norm, the one that the norm reads."""
    found: list[int] = []
    waiting = lineage.stream(value)
    while waiting:
        found += waiting
        waiting = _behind(lineage, waiting[-1])
    return found


def _behind(lineage: Lineage, value: int) -> list[int]:
    """What a norm's result, its bias included, is made of."""
    op = lineage.trace.producer(value)
    operands = [] if op is None else lineage.operands(op)
    if op is None or not operands:
        return []
    uses = lineage.owners.get(lineage.trace.index(op), {})
    is_bias = op.name.rstrip("_") == "add" and uses and all(use.additive for use in uses.values())
    return lineage.stream(operands[0]) if is_bias or "norm" in op.name else lineage.normalized(op)


def _may_be_residual(lineage: Lineage, index: int, op: Op) -> bool:
    """Not a bias: that is added to what has not been computed from it."""
    two = op.name.rstrip("_") == "add" and len(set(op.inputs)) == 2 and not lineage.is_static(op)
    of_activations = index not in lineage.owners and len(lineage.operands(op)) == 2
    alike = len({_without_batch_of_one(shape) for shape in (*op.shapes, *op.result_shapes)}) == 1
    if not (two and (of_activations or len(lineage.operands(op)) == 1)):
        return False
    return alike or _is_for_all_of_a_batch(lineage, op)


def _without_batch_of_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(itertools.dropwhile(lambda size: size == 1, shape))


def _is_for_all_of_a_batch(lineage: Lineage, op: Op) -> bool:
    """Whether one of two is the same for all samples, being a stream of learned queries."""
    one, other = op.shapes
    queries = [v for v, shape in zip(op.inputs, op.shapes, strict=True) if shape[:1] == (1,) and lineage.is_learned(v)]
    return bool(queries) and one[1:] == other[1:]


def _residual(lineage: Lineage, index: int, op: Op) -> _Add | None:
    one, other = op.inputs
    for skip, branch in ((one, other), (other, one)):
        stream = lineage.stream(skip)
        if not set(stream).isdisjoint(lineage.stream(branch)):
            return None  # two points of one stream
        source = next((v for v in stream if lineage.descends(branch, v)), None)
        source = lineage.source_of_piece(skip, branch) if source is None else source
        if source is not None and (lineage.contractions(source, branch) or _is_scaled(lineage, branch, stream)):
            return _Add(index, op.outputs[0], skip, branch, source)
    return None


def _is_scaled(lineage: Lineage, branch: int, stream: Sequence[int]) -> bool:
    """Whether a gain of its own ends what contracts no parameter (pooling with a layer scale)."""
    return "scale" in find_terminal(lineage, branch, frozenset(stream)).endings


def _projection(lineage: Lineage, index: int, op: Op) -> _Add | None:
    """The branch is the longer one of two; the other may contract nothing (pooling, channels filled up with zeros)."""
    one, other = op.inputs
    source = lineage.common(one, other)
    if source is None:
        return None
    lengths = lineage.contractions(source, one), lineage.contractions(source, other)
    if not any(lengths):
        return None
    skip, branch = (one, other) if lengths[1] >= lengths[0] else (other, one)
    return _Add(index, op.outputs[0], skip, branch, source, projected=True)


def _branch(lineage: Lineage, number: int, add: _Add, normed: bool) -> Branch:
    op = lineage.trace.ops[add.op]
    terminal = find_terminal(lineage, add.branch, frozenset(lineage.stream(add.skip)))
    siblings = unreached_siblings(terminal.names, lineage.trace)
    names = [*terminal.names, *(name for name in siblings if op.module and name.startswith(f"{op.module}."))]
    kind = "projection" if add.projected else _kind(terminal, normed)
    operand = op.inputs.index(add.branch)
    return Branch(
        number,
        add.op,
        operand,
        op.module,
        kind,
        tuple(names),
        frozenset(terminal.ops | terminal.biases),
        add.source,
        frozenset(terminal.offset),
        terminal.blocked_by,
        add.inside,
    )


def _kind(terminal: Terminal, normed: bool) -> Kind:
    if "scale" in terminal.endings:
        return "layer-scale"
    if "norm" in terminal.endings:
        return "norm-ended"
    if terminal.routed:
        return "experts"
    return "parallel" if len(terminal.ops) > 1 else "post-norm" if normed else "plain"


def unreached_siblings(names: Collection[str], trace: Trace) -> list[str]:
    """The same parameters of experts that the inputs chose nobody for: names that differ in their last index alone."""
    found = {_without_last_index(name) for name in names} - {None}
    unreached = [name for name, uses in trace.uses.items() if not any(use.reached for use in uses)]
    return [name for name in unreached if _without_last_index(name) in found]


def _without_last_index(name: str) -> str | None:
    found = re.fullmatch(r"(.*?)\d+(\.\D*)", name)
    return f"{found[1]}*{found[2]}" if found else None


def _enclosing(lineage: Lineage, adds: Sequence[_Add], number: int) -> int | None:
    """The innermost branch that an add stands in: its result reaches that one's end, not by way of the stream."""
    own = adds[number]
    for other, add in enumerate(adds[number + 1 :], number + 1):
        begins_after = lineage.descends(own.branch, add.source)
        if begins_after and lineage.descends(add.branch, own.result) and not lineage.descends(add.skip, own.result):
            return other
    return None


def _stream_norms(lineage: Lineage, adds: Sequence[_Add]) -> list[tuple[tuple[str, ...], _Add]]:
    """Norms behind a residual add that lead to the next one's stream; behind the last one there is no next, but the
    stream of its own add has come through such a norm."""
    by_result = {add.result: add for add in adds}
    streams = {(add.inside, value) for add in adds for value in lineage.parts(add.skip)}
    found: list[tuple[tuple[str, ...], _Add]] = []
    normed: set[int] = set()
    for index, uses in lineage.owners.items():
        op = lineage.trace.ops[index]
        behind = _behind_norm(lineage, op)
        add = next((by_result[value] for value in behind if value in by_result), None)
        if add is None or any(use.kind != "elementwise" for use in uses.values()):
            continue
        out, bias = _with_bias(lineage, op.outputs[0])
        ends = (add.inside, add.result) not in streams and not normed.isdisjoint(lineage.stream(add.skip))
        if (add.inside, out) in streams or ends:
            normed.add(out)
            found.append(((*uses, *bias), add))
    return found


def _behind_norm(lineage: Lineage, op: Op) -> list[int]:
    """The stream that a norm with a gain reads, for a norm in one op and for one written as gain * (x / rms(x))."""
    operands = lineage.operands(op)
    if not operands:
        return []
    if "norm" in op.name:
        return lineage.stream(operands[0])
    product = lineage.trace.producer(_viewed(lineage, operands[0])) if op.name.startswith("mul") else None
    return [] if product is None else lineage.normalized(product)


def _viewed(lineage: Lineage, value: int) -> int:
    while (op := lineage.trace.producer(value)) is not None and op.name in VIEWS and lineage.operands(op):
        value = lineage.operands(op)[0]
    return value


def _with_bias(lineage: Lineage, value: int) -> tuple[int, tuple[str, ...]]:
    """A norm's result, its bias included where that is added by an op of its own."""
    readers: Iterable[Op] = lineage.trace.consumers(value)
    for op in readers:
        uses = lineage.owners.get(lineage.trace.index(op), {})
        if op.name.rstrip("_") == "add" and uses and all(use.additive for use in uses.values()):
            return op.outputs[0], tuple(uses)
    return value, ()
