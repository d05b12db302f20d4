"""What one forward pass is recorded as: ops, the values between them, and every use of every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from mutransfer.planning.layout import Dims

UseKind = Literal["contraction", "lookup", "elementwise", "opaque"]

VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze",
         "alias", "detach", "reshape", "clone", "_to_copy", "contiguous", "split", "split_with_sizes", "unbind",
         "as_strided", "native_dropout", "chunk", "index"}  # fmt: skip
"""Ops after which the entries are the same, though perhaps not all of them and in another order."""


@dataclass(frozen=True)
class Use:
    """One op that consumes a parameter.

    Attributes:
        kind: "contraction" (a sum over some of its dimensions), "lookup" (rows are gathered), "elementwise"
            (a gain or a bias), or "opaque" (an op that the trace does not know).
        contracted: the parameter's own dimensions that are summed over.
        batch: its dimensions that run along (a stack of experts, the channels of a depthwise convolution).
        op: index into `Trace.ops`.
        module: path of the module that ran the op.
        additive: elementwise, and added as a bias or a position is, not multiplied as a gain is.
        partner: the parameter that the contraction multiplies this one with, where no activation takes part.
        reached: the forward pass ran it; else it is what the layer would do.
        nonlinear: the parameter went through a nonlinear function first, so a factor on it is none on the result.
    """

    kind: UseKind
    contracted: Dims = frozenset()
    batch: Dims = frozenset()
    op: int = -1
    module: str = ""
    additive: bool = False
    partner: str = ""
    reached: bool = True
    nonlinear: bool = False


@dataclass(frozen=True)
class Op:
    """One dispatched op.

    Attributes:
        name, module: of the op, and the path of the module that ran it.
        inputs, outputs: the values it read and wrote, numbered.
        scalars: its numbers; a tensor of one element and known value is a number too.
        kwargs: its keyword arguments that are numbers.
        parameters: position among all its arguments -> the parameter that the operand holds.
        shifted: those of them that enter changed by more than a factor, as in a gain that is 1 + w.
        shapes, result_shapes: of inputs and outputs.
        static: no input of the model reaches it.
        choices: of the outputs, those that are no floating-point numbers: indices, comparisons.
    """

    name: str
    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scalars: tuple[float, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[int, str] = field(default_factory=dict)
    shifted: frozenset[str] = frozenset()
    shapes: tuple[tuple[int, ...], ...] = ()
    result_shapes: tuple[tuple[int, ...], ...] = ()
    static: bool = False
    choices: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Trace:
    """One forward pass: every use of every parameter in execution order, the graph of ops, the values that leave the
    model, the parameters that are normalized before they are used (weight_norm), and the values that it is given."""

    uses: Mapping[str, tuple[Use, ...]]
    ops: tuple[Op, ...]
    results: frozenset[int]
    normalized: frozenset[str] = frozenset()
    given: frozenset[int] = frozenset()

    def index(self, op: Op) -> int:
        return self._indices[id(op)]

    def producer(self, value: int) -> Op | None:
        return self._producers.get(value)

    def consumers(self, value: int) -> list[Op]:
        return self._consumers.get(value, [])

    @cached_property
    def _indices(self) -> dict[int, int]:
        return {id(op): index for index, op in enumerate(self.ops)}

    @cached_property
    def _producers(self) -> dict[int, Op]:
        return {value: op for op in self.ops for value in op.outputs}

    @cached_property
    def _consumers(self) -> dict[int, list[Op]]:
        consumers: dict[int, list[Op]] = {}
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                consumers.setdefault(value, []).append(op)
        return consumers
