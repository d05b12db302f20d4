"""What a value of the traced graph is computed from: ancestors, the parameters on the way, and the stream behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mutransfer.planning.ops import VIEWS, Op, Trace, Use

_ACTIVATIONS = {"relu", "gelu", "silu", "leaky_relu", "elu", "hardswish", "hardtanh", "mish", "threshold"}
"""Between two blocks the stream may pass through these (ResNets)."""

_ALIASES = VIEWS - {"clone", "_to_copy", "contiguous", "index", "native_dropout"}


class Lineage:
    """Ancestors of every activation of a trace. Activations are what an input of the model reaches."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.owners = _owners(trace)
        self._skips: dict[int, int] = {}
        self._behind: dict[int, int] = {}
        self._roots: dict[int, int] = {}
        for op in trace.ops:
            self._follow(op)
        self._contractions = [
            i for i, uses in self.owners.items() if any(use.kind == "contraction" for use in uses.values())
        ]

    def _follow(self, op: Op) -> None:
        """Sets of values are the bits of one number: a trace has thousands."""
        behind = 0
        for value in op.inputs:
            behind |= self._behind.get(value, 0) | self._behind.get(self._roots.get(value, value), 0) | 1 << value
        for value in op.outputs:
            self._behind[value] = behind | 1 << value
        self._write_through(op, behind)

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
        return value in self.trace.given if producer is None else not producer.static

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
        if op is None or op.static:
            return op.inputs[0] if op is not None and op.name in VIEWS and op.inputs else None
        if self.trace.index(op) in self.owners and not self.gains(op):
            return None
        name, operands = op.name.rstrip("_"), self.operands(op)
        through = name in VIEWS or name in _ACTIVATIONS or (name in ("mul", "div") and len(operands) == 1)
        return operands[0] if operands and through and _is_whole(op, operands[0]) else None

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
