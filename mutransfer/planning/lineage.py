"""What a value of the traced graph is computed from: ancestors, the parameters on the way, and the stream behind it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from mutransfer.planning.calls import SHAPED_ALIKE
from mutransfer.planning.ops import VIEWS, Op, Trace, Use

_ACTIVATIONS = {"relu", "gelu", "silu", "leaky_relu", "elu", "hardswish", "hardtanh", "mish", "threshold"}
"""Between two blocks the stream may pass through these (ResNets)."""

_CUTS = VIEWS | {"index_select", "gather"}
"""Some of these leave entries out: a slice, the rows that a mask picks."""
_WRITES = {"index_put", "_index_put_impl", "masked_scatter", "scatter", "index_copy", "slice_scatter", "select_scatter"}
"""Ops that write their last operand over entries of their first."""
_DRAWN = re.compile("rand|dropout|bernoulli|multinomial|uniform|normal_|exponential")

_ALIASES = VIEWS - {"clone", "_to_copy", "contiguous", "index", "native_dropout"}


class Cut(NamedTuple):
    """How entries are left out of a value: two cuts of one stream that are equal leave the same ones.

    Attributes:
        how: the op, its numbers, its indices, and which of its results it is.
        size: entries of what is cut.
    """

    how: tuple[object, ...]
    size: int


class Lineage:
    """Ancestors of every activation of a trace. Activations are what an input of the model reaches."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.owners = _owners(trace)
        self._skips: dict[int, int] = {}
        self._behind: dict[int, int] = {}
        self._roots: dict[int, int] = {}
        self._alike: dict[tuple[object, ...], int] = {}
        self._kinds: dict[int, int] = {}
        self._whole: dict[int, int | None] = {}
        self._learned: set[int] = set()
        for op in trace.ops:
            self._follow(op)
        self._contractions = [
            i for i, uses in self.owners.items() if any(use.kind == "contraction" for use in uses.values())
        ]
        self._learned = self._learned_streams()

    def _learned_streams(self) -> set[int]:
        """What is made of learned queries that attend to one another first: a stream that no input reaches yet."""
        learned = set[int]()
        for op in self.trace.ops:
            if op.static and op.name.rstrip("_") == "add" and len(set(op.inputs)) == 2 and len(set(op.shapes)) == 1:
                for skip, branch in (op.inputs, op.inputs[::-1]):
                    source = next((value for value in self.stream(skip) if self.descends(branch, value)), None)
                    learned |= {source} if source is not None and self.contractions(source, branch) else set()
        for op in self.trace.ops if learned else ():
            if op.name not in SHAPED_ALIKE and not learned.isdisjoint(op.inputs):
                learned.update(op.outputs)
        return learned

    def _follow(self, op: Op) -> None:
        """Sets of values are the bits of one number: a trace has thousands."""
        behind = 0
        for value in op.inputs:
            behind |= self._behind.get(value, 0) | self._behind.get(self._roots.get(value, value), 0) | 1 << value
        for value in op.outputs:
            self._behind[value] = behind | 1 << value
        self._write_through(op, behind)
        self._tell_alike(op)

    def _tell_alike(self, op: Op) -> None:
        """Values that are computed alike (a mask that is negated twice) are known as one."""
        drawn = op.outputs if _DRAWN.search(op.name) else ()
        operands = tuple(self._kinds.get(value, value) for value in op.inputs)
        numbers = (op.scalars, tuple(op.kwargs.items()), tuple(op.parameters.items()))
        made = (op.name, *numbers, op.result_shapes, operands, drawn)
        for position, value in enumerate(op.outputs):
            self._kinds[value] = self._alike.setdefault((position, *made), value)

    def _write_through(self, op: Op, behind: int) -> None:
        """What is written into a view is in the tensor that it is a view of, too."""
        root = self._roots.get(op.inputs[0], op.inputs[0]) if op.inputs else -1
        if op.name.rstrip("_") in _ALIASES:
            self._roots |= dict.fromkeys(op.outputs, root)
        elif op.name.endswith("_") and root in self._behind and root != op.inputs[0]:
            self._behind[root] |= behind
            self._roots |= dict.fromkeys(op.outputs, root)

    def is_activation(self, value: int) -> bool:
        producer = self.trace.producer(value)
        reached = value in self.trace.given if producer is None else not producer.static
        return reached or self.is_learned(value)

    def is_learned(self, value: int) -> bool:
        """Whether a value is computed from a stream of learned queries."""
        return value in self._learned

    def is_static(self, op: Op) -> bool:
        """Whether an op is computed from parameters and numbers alone, and no stream of them."""
        return op.static and not any(map(self.is_activation, op.outputs))

    def operands(self, op: Op) -> list[int]:
        """The activations that an op reads, in the order of its arguments."""
        return [value for value in op.inputs if self.is_activation(value)]

    def descends(self, value: int, ancestor: int) -> bool:
        """Whether a value is computed from another one, or is it."""
        return bool(self._behind.get(value, 1 << value) >> ancestor & 1)

    def common(self, one: int, other: int) -> int | None:
        """The latest activation that both values are computed from."""
        shared = self._behind.get(one, 0) & self._behind.get(other, 0)
        while shared and not self.is_activation(shared.bit_length() - 1):
            shared ^= 1 << (shared.bit_length() - 1)
        return shared.bit_length() - 1 if shared else None

    def contractions(self, ancestor: int, value: int) -> int:
        """How many ops contract a parameter on the way from one value to another."""
        return sum(
            any(self.descends(value, out) for out in op.outputs)
            and any(v != out and self.descends(v, ancestor) for v in op.inputs for out in op.outputs)
            for op in (self.trace.ops[i] for i in self._contractions)
        )

    def join(self, result: int, skip: int) -> None:
        """Notes that the stream passes from `skip` to the result of a residual add."""
        self._skips[result] = skip

    def stream(self, value: int) -> list[int]:
        """A value and those that it is the same stream as, latest first: through views, dropout, a number or a gain, an
        activation function, and residual adds."""
        found = [value]
        while (before := self._one_back(value)) is not None:
            found.append(value := before)
        return found

    def _one_back(self, value: int) -> int | None:
        if value in self._skips:
            return self._skips[value]
        op = self.trace.producer(value)
        if op is None or self.is_static(op):
            return op.inputs[0] if op is not None and op.name in VIEWS and op.inputs else None
        if self.trace.index(op) in self.owners and not self.gains(op):
            return None
        name, operands = op.name.rstrip("_"), self.operands(op)
        if name in ("cat", "stack", *_WRITES):
            return self._put_together(op, value)
        through = name in VIEWS or name in _ACTIVATIONS or (name in ("mul", "div") and len(operands) == 1)
        return operands[0] if operands and through and _is_whole(op, operands[0]) else None

    def pieces(self, value: int) -> dict[int, tuple[Cut, ...]]:
        """A value and those that it is the same stream as, latest first, or entries of the same stream, each with how
        it has been cut since."""
        found: dict[int, tuple[Cut, ...]] = {}
        cuts: tuple[Cut, ...] = ()
        while True:
            stream = self.stream(value)
            found |= dict.fromkeys(stream, cuts)
            op = self.trace.producer(stream[-1])
            cut = None if op is None else self._cut(op, stream[-1])
            if op is None or cut is None:
                return found
            cuts, value = (cut, *cuts), op.inputs[0]

    def _cut(self, op: Op, value: int) -> Cut | None:
        """How an op leaves entries of its first operand out; None for any other."""
        if op.name not in _CUTS or self.operands(op)[:1] != list(op.inputs[:1]) or _is_whole(op, op.inputs[0]):
            return None
        at = tuple(self._kinds.get(index, index) for index in op.inputs[1:])
        how = (op.name, op.scalars, op.outputs.index(value), at, op.result_shapes)
        return Cut(how, math.prod(op.shapes[0]))

    def _cut_alike(self, value: int, cuts: tuple[Cut, ...]) -> set[int]:
        """What is left of a value, or of a view of it, after some cuts."""
        found, waiting = set[int](), [(value, cuts)]
        while waiting:
            value, left = waiting.pop()
            found |= set() if left else {value}
            for op in self.trace.consumers(value) if left else ():
                if op.inputs[0] == value and op.name in _CUTS and not self.is_static(op):
                    made = [(out, self._cut(op, out)) for out in op.outputs]
                    waiting += [(out, left if cut is None else left[1:]) for out, cut in made if cut in (None, left[0])]
        return found

    def source_of_piece(self, skip: int, branch: int) -> int | None:
        """What a branch on some entries of a stream is computed from: the same entries, or all of them, where it is cut
        alike afterwards. A time step of a recurrence is computed from other ones."""
        own = self.pieces(branch)
        for value, cuts in self.pieces(skip).items():
            if not cuts or not self.descends(branch, value):
                continue
            found = next((same for same in self._cut_alike(value, cuts) if self.descends(branch, same)), None)
            if found is not None:
                return found
            if any(cut == cuts and self.descends(of, value) for of, cut in own.items()):
                return value
        return None

    def _put_together(self, op: Op, value: int) -> int | None:
        """The stream that an op puts together again: of all its pieces, or with pieces written over its own entries."""
        if value not in self._whole:
            self._whole[value] = self._rewritten(op) if op.name.rstrip("_") in _WRITES else self._joined(op)
        return self._whole[value]

    def _rewritten(self, op: Op) -> int | None:
        written = self.pieces(op.inputs[-1])
        is_piece = any(value in written for value in self.stream(op.inputs[0]))
        return op.inputs[0] if self.is_activation(op.inputs[0]) and is_piece else None

    def _joined(self, op: Op) -> int | None:
        first, *others = map(self.pieces, op.inputs)
        for value in first if self.operands(op) == list(op.inputs) else ():
            cuts = {pieces[value] for pieces in (first, *others) if pieces.get(value)}
            sizes = {cut[0].size for cut in cuts}
            if len(cuts) == len(op.inputs) and sizes == {math.prod(op.result_shapes[0])}:
                return value
        return None

    def parts(self, value: int) -> set[int]:
        """All that is on the stream behind a value, on that of pieces that were put together to it too."""
        found, waiting = set[int](), [value]
        while waiting:
            new = [v for v in self.pieces(waiting.pop()) if v not in found]
            found.update(new)
            ops = (op for op in map(self.trace.producer, new) if op is not None)
            waiting += [v for op in ops if op.name in ("cat", "stack") for v in self.operands(op) if v not in found]
        return found

    def gains(self, op: Op) -> tuple[str, ...]:
        """The parameters that an op multiplies an activation with, entry by entry; empty for any other op."""
        uses = self.owners.get(self.trace.index(op), {})
        own = op.name.rstrip("_") == "mul" and len(self.operands(op)) == 1
        gains = own and all(use.kind == "elementwise" and not (use.additive or use.nonlinear) for use in uses.values())
        return tuple(uses) if gains else ()

    def normalized(self, op: Op) -> list[int]:
        """The stream that an op divides by its own size, x / rms(x), its mean taken off first or not; empty for any
        other op."""
        operands = self.operands(op)
        if op.name.rstrip("_") not in ("mul", "div") or len(set(operands)) != 2:
            return []
        for value, size in (operands, operands[::-1]):
            behind = self._with_mean(value)
            if any(self.descends(size, before) for before in behind):
                return behind
        return []

    def _with_mean(self, value: int) -> list[int]:
        """The stream behind a value, and where that is x less what is made of x, the one behind x."""
        own = self.stream(value)
        op = self.trace.producer(own[-1])
        operands = [] if op is None or op.name.rstrip("_") != "sub" else self.operands(op)
        centred = len(operands) == 2 and self.descends(operands[1], operands[0])
        return [*own, *self.stream(operands[0])] if centred else own


def _is_whole(op: Op, value: int) -> bool:
    """Whether all of an operand is in the result: one time step of a recurrence is not the sequence."""
    return math.prod(op.shapes[op.inputs.index(value)]) == math.prod(op.result_shapes[0])


def _owners(trace: Trace) -> Mapping[int, Mapping[str, Use]]:
    """Op -> the parameters that it uses. A tensor that is normalized before it is used sets no size."""
    owners: dict[int, dict[str, Use]] = {}
    for name, uses in trace.uses.items():
        for use in uses:
            if use.reached and use.op >= 0 and name not in trace.normalized:
                owners.setdefault(use.op, {})[name] = use
    return dict(sorted(owners.items()))
