"""The terminal of a residual branch: the last parameters that all of it is proportional to.

Walks back from where the branch is added, through what commutes with a positive factor, to the first op that owns
parameters: a layer's weight and bias, a norm's gain and bias, a layer scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from mutransfer.planning.lineage import Lineage
from mutransfer.planning.ops import VIEWS, Op

Ending = Literal["layer", "norm", "scale"]
"""What a branch ends in: a layer that contracts, a norm's gain, a gain of its own."""

_FIRST = VIEWS | {
    "div", "neg", "sum", "mean", "cumsum", "masked_fill", "gather", "index_select", "constant_pad_nd", "flip", "roll",
    "repeat", "repeat_interleave", "tril", "triu", "relu", "leaky_relu", "_prelu_kernel", "im2col", "col2im",
    "_unsafe_index", "unfold", "view_as_real", "view_as_complex", "avg_pool2d", "_adaptive_avg_pool2d",
    "max_pool2d_with_indices", "native_channel_shuffle", "pixel_shuffle", "upsample_nearest2d", "upsample_bilinear2d",
    "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_reshape_alias",
}  # fmt: skip
"""Ops that a positive factor on their first operand passes through."""
_SUMS = {"add", "sub", "cat", "stack"}
"""Ops whose every operand must carry the factor."""
_ENDS = {"index_add", "index_put", "_index_put_impl", "scatter_add", "scatter", "index_copy", "masked_scatter",
         "slice_scatter", "select_scatter", "scatter_reduce"}  # fmt: skip
"""Sums of their first and their last operand; those between are indices."""
_PRODUCTS = {"mul", "bmm", "mm", "matmul", "convolution"}
"""Ops of which one operand carries the factor."""


@dataclass
class Terminal:
    """Where a branch ends.

    Attributes:
        names: the parameters, those of the last op first.
        ops: the ops that own them.
        biases: ops that add one of them on its own.
        offset: those that enter as a number plus themselves (1 + w).
        endings: see `Ending`.
        routed: an activation multiplies what the layers give, as a router's weights do.
        blocked_by: the op that a factor does not pass through, or "the stream"; then there is no terminal.
    """

    names: dict[str, None] = field(default_factory=dict)
    ops: set[int] = field(default_factory=set)
    biases: set[int] = field(default_factory=set)
    offset: set[str] = field(default_factory=set)
    endings: set[Ending] = field(default_factory=set)
    routed: bool = False
    blocked_by: str = ""

    def merge(self, other: Terminal) -> None:
        self.names |= other.names
        self.ops |= other.ops
        self.biases |= other.biases
        self.offset |= other.offset
        self.endings |= other.endings
        self.routed |= other.routed


def find_terminal(lineage: Lineage, value: int, stop: frozenset[int]) -> Terminal:
    """The terminal of a branch.

    Args:
        value: what is added to the stream.
        stop: values of the stream: a walk that meets one has found no parameter.
    """
    found, waiting = Terminal(), [value]
    while waiting and not found.blocked_by:
        value = waiting.pop(0)
        op = lineage.trace.producer(value)
        if op is None or value in stop:
            found.blocked_by = "the stream"
        elif not _take_parameters(lineage, op, found):
            waiting += _onward(lineage, op, stop, found)
    return Terminal(blocked_by=found.blocked_by) if found.blocked_by else found


def _take_parameters(lineage: Lineage, op: Op, found: Terminal) -> bool:
    """Notes the parameters of an op; whether the walk ends with them, and not in front of a gate such as tanh(w), which
    a factor on w is none on."""
    uses = lineage.owners.get(lineage.trace.index(op), {})
    uses = {name: use for name, use in uses.items() if not (use.nonlinear and _ending(op) == "scale")}
    ending = _ending(op) if any(use.kind != "elementwise" or not use.additive for use in uses.values()) else None
    if any(use.kind == "opaque" for use in uses.values()):
        found.blocked_by = op.name
    elif ending is not None:
        found.endings.add(_of_a_norm(lineage, op) if ending == "scale" else ending)
        found.ops.add(lineage.trace.index(op))
    if ending is not None or _adds(op):
        found.names |= dict.fromkeys(uses)
        found.offset |= op.shifted & uses.keys()
        if uses and ending is None:
            found.biases.add(lineage.trace.index(op))
    return bool(uses) and ending is not None


def _ending(op: Op) -> Ending | None:
    """None for an op that is proportional to the activation, and not to the parameter (division, PReLU)."""
    name = op.name.rstrip("_")
    if name in ("div", "_prelu_kernel"):
        return None
    if "norm" in name:
        return "norm"
    return "scale" if name == "mul" else "layer"


def _of_a_norm(lineage: Lineage, op: Op) -> Ending:
    """Whether a gain multiplies a normalized value: x / rms(x) is written as a product of x and what is made of x."""
    for value in lineage.operands(op):
        for behind in lineage.stream(value):
            before = lineage.trace.producer(behind)
            if before is not None and _is_normalization(lineage, before):
                return "norm"
    return "scale"


def _is_normalization(lineage: Lineage, op: Op) -> bool:
    return ("norm" in op.name and "vector" not in op.name) or bool(lineage.normalized(op))


def _adds(op: Op) -> bool:
    return op.name.rstrip("_") in ("add", "sub")


def _onward(lineage: Lineage, op: Op, stop: frozenset[int], found: Terminal) -> list[int]:
    """The operands that must carry the factor in turn."""
    name, operands = op.name.rstrip("_"), lineage.operands(op)
    shifts = _adds(op) and len(op.inputs) == 1
    if name in _FIRST and not shifts and operands[:1] == list(op.inputs[:1]):
        if name == "div" and len(operands) > 1:
            return _one_of(lineage, op, operands[:1], stop, found)
        return operands[:1]
    if name in _SUMS and not shifts:
        return operands
    if name in _ENDS:
        return [value for value in (op.inputs[0], op.inputs[-1]) if lineage.is_activation(value)]
    if name == "copy":
        return list(op.inputs[-1:])
    if name == "where":
        return [value for value in op.inputs[1:] if lineage.is_activation(value)]
    if name in _PRODUCTS or name.startswith("_scaled_dot_product"):
        return _one_of(lineage, op, _factors(op, operands), stop, found)
    found.blocked_by = op.name
    return []


def _factors(op: Op, operands: list[int]) -> list[int]:
    """The factors of a product, the likeliest first: the values of an attention, the larger of two (not a router's
    weights)."""
    if op.name.startswith("_scaled_dot_product"):
        return list(op.inputs[2:3])
    if op.name.startswith("mul"):
        sizes = dict(zip(op.inputs, map(math.prod, op.shapes), strict=True))
        return sorted(operands, key=lambda value: -sizes[value])
    return operands[::-1]


def _one_of(lineage: Lineage, op: Op, factors: list[int], stop: frozenset[int], found: Terminal) -> list[int]:
    """Takes the first factor that the product is proportional to: the others must not depend on its terminal."""
    blocked = op.name
    for factor in factors:
        terminal = find_terminal(lineage, factor, stop)
        others = [value for value in lineage.operands(op) if value != factor]
        outputs = [out for i in terminal.ops for out in lineage.trace.ops[i].outputs]
        if terminal.ops and not any(lineage.descends(other, out) for other in others for out in outputs):
            found.merge(terminal)
            found.routed |= op.name.startswith("mul") and bool(others)
            return []
        blocked = terminal.blocked_by or op.name
    found.blocked_by = blocked
    return []
