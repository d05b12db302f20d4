"""Walks in the traced graph: the norm in front of a readout, what stands at the entrance, and what at the exit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from mutransfer.planning.ops import VIEWS, Op, Trace, Use

_NORM_OPERANDS = {"native_layer_norm": (1, 2), "_fused_rms_norm": (1,)}


@dataclass(frozen=True)
class NormFold:
    """The gain and bias of the norm directly in front of a readout, proven to feed nothing else."""

    parameters: tuple[str, ...]
    module: str


def norm_in_front(trace: Trace, readout: Use) -> NormFold | str:
    """The norm whose gain and bias can carry the multiplier of a readout, or why there is none.

    Walks back from the readout's activation through views, copies and dropout to the op that applies the gain; every
    value on the way must be consumed by that way alone and must not leave the model.
    """
    if not readout.reached:
        return "the example inputs do not reach it"
    op = trace.ops[readout.op]
    value = _activation(op)
    bias: list[str] = []
    while True:
        if value in trace.results:
            return "the normalized hidden state also leaves the model"
        if len(set(map(id, readers(trace, value)))) != 1:
            return "the normalized hidden state has another consumer"
        producer = trace.producer(value)
        if producer is None:
            return "nothing is applied in front of the readout"
        carried = _gain_of(producer)
        if carried and producer.shifted:
            return f"its gain enters as a number plus {min(producer.shifted)!r}"
        if carried:
            names = tuple(dict.fromkeys([*carried, *bias]))
            if any(len(trace.uses[name]) != 1 for name in names):
                return f"{names[0]!r} is used more than once"
            return NormFold(names, producer.module)
        if producer.name == "add" and len(producer.parameters) == 1 and len(producer.inputs) == 2:
            bias.append(next(iter(producer.parameters.values())))
            value = _other_input(producer)
        elif producer.name in VIEWS and not producer.parameters:
            value = producer.inputs[0]
        else:
            return f"{producer.name!r} stands between the norm and the readout"


def _activation(op: Op) -> int:
    """The operand of a contraction that is not the parameter, nor an addmm's bias."""
    candidates = [i for i in range(len(op.inputs)) if i not in op.parameters]
    return op.inputs[candidates[-1] if op.name.startswith(("addmm", "baddbmm")) else candidates[0]]


def _gain_of(op: Op) -> tuple[str, ...]:
    if op.name in _NORM_OPERANDS:
        return tuple(op.parameters[i] for i in sorted(op.parameters))
    if op.name == "mul" and len(op.parameters) == 1 and len(op.inputs) == 2:
        return tuple(op.parameters.values())
    return ()


def _other_input(op: Op) -> int:
    (held,) = op.parameters
    return op.inputs[1 - held]


def readers(trace: Trace, value: int) -> list[Op]:
    """The ops that read a value; one that autograd keeps for the backward pass is detached, and read by nobody."""
    kept = ("detach", "alias")
    return [
        op
        for op in trace.consumers(value)
        if op.outputs
        and not op.static
        and not (op.name in kept and not any(trace.consumers(out) for out in op.outputs))
    ]


def entrances(trace: Trace, growing: Collection[str]) -> frozenset[int]:
    """Ops with nothing wide in front: no parameter that grows has touched what they read.

    Args:
        growing: the parameters that have a size that follows the width.
    """
    wide: set[int] = set()
    first: set[int] = set()
    for index, op in enumerate(trace.ops):
        behind = any(value in wide for value in op.inputs)
        if not behind:
            first.add(index)
        if not op.static and (behind or any(name in growing for name in op.parameters.values())):
            wide.update(op.outputs)
    return frozenset(first)


def exits(trace: Trace, growing: Collection[str]) -> frozenset[int]:
    """Ops whose result leaves the model with no wide contraction after them, as a readout's does.

    A router, a key of few heads, a squeeze: whatever they make is multiplied by a growing parameter again.
    """
    inner: set[int] = set()
    leaving = set(trace.results)
    last: set[int] = set()
    for index in range(len(trace.ops) - 1, -1, -1):
        op = trace.ops[index]
        if any(value in inner for value in op.outputs):
            inner.update(op.inputs)
        elif any(value in leaving for value in op.outputs):
            last.add(index)
            leaving.update(op.inputs)
        if any(name in growing for name in op.parameters.values()):
            inner.update(op.inputs)
    return frozenset(last)


def attention_biases(trace: Trace, growing: Collection[str]) -> frozenset[int]:
    """Ops whose result enters a softmax, or the mask of a fused attention, before any wide contraction."""
    biased: set[int] = set()
    found: set[int] = set()
    for index in range(len(trace.ops) - 1, -1, -1):
        op = trace.ops[index]
        if any(value in biased for value in op.outputs):
            found.add(index)
            product = op.name in ("bmm", "baddbmm", "mm", "addmm")
            if not product and not any(name in growing for name in op.parameters.values()):
                biased.update(op.inputs)
        if op.name in ("_softmax", "softmax", "_safe_softmax"):
            biased.update(op.inputs[:1])
        elif op.name.startswith("_scaled_dot_product"):
            biased.update(op.inputs[3:])
    return frozenset(found)


def without_choices(trace: Trace) -> Trace:
    """The trace without the uses of parameters that only choose an entry of them, which another use then looks up: the
    distance of a latent to each row of a codebook, of which the index of the least alone goes on."""
    uses = {}
    for name, found in trace.uses.items():
        going_on = tuple(use for use in found if not (use.reached and _only_chooses(trace, trace.ops[use.op])))
        uses[name] = going_on or found
    return replace(trace, uses=uses)


def _only_chooses(trace: Trace, op: Op) -> bool:
    """Whether all that is made of an op's result ends in indices and comparisons."""
    waiting, seen, chosen = [op], set[int](), False
    while waiting:
        op = waiting.pop()
        chosen |= bool(op.choices)
        values = set(op.outputs) - op.choices
        if values & trace.results or op.name.endswith("_"):  # what is written in place may be read by another name
            return False
        for reader in (reader for value in values for reader in trace.consumers(value)):
            if trace.index(reader) not in seen:
                seen.add(trace.index(reader))
                waiting.append(reader)
    return chosen
