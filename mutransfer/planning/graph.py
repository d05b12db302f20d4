"""Walks in the traced graph: the norm in front of a tied readout, and every attention's softmax scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mutransfer.planning.ops import VIEWS, Op, Trace, Use

_NORM_OPERANDS = {"native_layer_norm": (1, 2), "_fused_rms_norm": (1,)}
_BETWEEN_LOGITS_AND_SOFTMAX = {"add", "masked_fill", "where", "tanh", "sub"} | VIEWS


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
    op = trace.ops[readout.op]
    value = _activation(op)
    bias: list[str] = []
    while True:
        if value in trace.results:
            return "the normalized hidden state also leaves the model"
        if len(set(map(id, _readers(trace, value)))) != 1:
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


def _readers(trace: Trace, value: int) -> list[Op]:
    """The ops that read a value; one that autograd keeps for the backward pass is detached, and read by nobody."""
    kept = ("detach", "alias")
    return [
        op
        for op in trace.consumers(value)
        if op.outputs and not (op.name in kept and not any(trace.consumers(out) for out in op.outputs))
    ]


@dataclass(frozen=True)
class AttentionSite:
    """One softmax over q k.

    Attributes:
        module: path of the module that runs it.
        scale: the effective factor on q k, all scalars on q, k and the logits multiplied.
        head_dim: the size that q and k are contracted over.
        queries, keys: the parameters that q and k come from, gains of a QK-norm included.
    """

    module: str
    scale: float
    head_dim: int
    queries: tuple[str, ...]
    keys: tuple[str, ...]


def attention_sites(trace: Trace) -> list[AttentionSite]:
    """Every attention in execution order: SDPA in any of its kernels, or softmax over a product of activations."""
    sites = []
    for op in trace.ops:
        if op.name.startswith("_scaled_dot_product"):
            scale = op.kwargs.get("scale")
            head_dim = op.shapes[0][-1]
            own = float(scale) if scale is not None else 1 / math.sqrt(head_dim)
            sites.append(_site(trace, op, own, op.inputs[0], op.inputs[1], head_dim))
        elif op.name in ("_softmax", "softmax", "_safe_softmax"):
            found = _logits(trace, op.inputs[0])
            if found:
                product, scalar = found
                q, k = product.inputs[-2:]
                sites.append(_site(trace, product, scalar, q, k, product.shapes[-1][1]))
    return sites


def _site(trace: Trace, op: Op, scale: float, q: int, k: int, head_dim: int) -> AttentionSite:
    q_scalar, k_scalar = _scalars(trace, q), _scalars(trace, k)
    queries, keys = _sources(trace, q, {}) or frozenset(), _sources(trace, k, {}) or frozenset()
    return AttentionSite(op.module, scale * q_scalar * k_scalar, head_dim, tuple(sorted(queries)), tuple(sorted(keys)))


def _logits(trace: Trace, value: int) -> tuple[Op, float] | None:
    """The product q k that a softmax reads, and the scalars on the way."""
    scalar = 1.0
    while (op := trace.producer(value)) is not None:
        if op.name in ("bmm", "baddbmm") and not op.parameters:
            alpha = op.kwargs.get("alpha")
            return op, scalar * (1.0 if alpha is None else float(alpha))
        factor = _scalar_of(op)
        if factor is None and op.name not in _BETWEEN_LOGITS_AND_SOFTMAX:
            return None
        scalar *= factor or 1.0
        value = _larger(op)
    return None


def _larger(op: Op) -> int:
    """The operand that the others are broadcast to, the first of several: not a mask, nor where's condition."""
    operands = list(zip(op.inputs, op.shapes, strict=True))[1 if op.name == "where" else 0 :]
    return max(operands, key=lambda operand: math.prod(operand[1]))[0]


def _scalar_of(op: Op) -> float | None:
    """The number that an op multiplies its one tensor by, if that is all it does."""
    if len(op.inputs) == 1 and len(op.scalars) == 1:
        if op.name in ("mul", "mul_"):
            return op.scalars[0]
        if op.name in ("div", "div_"):
            return 1 / op.scalars[0]
    return None


def _scalars(trace: Trace, value: int) -> float:
    """The numbers that a value is multiplied by on the way back to the parameters that set its size."""
    scalar = 1.0
    while (op := trace.producer(value)) is not None and not op.parameters:
        factor = _scalar_of(op)
        if factor is None and op.name not in VIEWS | {"add", "mul", "cat", "neg"}:
            break
        scalar *= factor or 1.0
        value = op.inputs[-1 if op.name == "cat" else 0]  # a cache of past keys comes first
    return scalar


def _sources(trace: Trace, value: int, known: dict[int, frozenset[str] | None]) -> frozenset[str] | None:
    """The parameters that a value is proportional to when they are scaled together; None where there are none.

    Every summand must be proportional to its own: the weight and the bias of a projection, both halves of a rotation.
    Of a product one factor is enough, and a gain (a QK-norm's) ends the search.
    """
    if value not in known:
        known[value] = None  # a value is no source of itself
        op = trace.producer(value)
        known[value] = _sources_of(trace, op, known) if op is not None else None
    return known[value]


def _sources_of(trace: Trace, op: Op, known: dict[int, frozenset[str] | None]) -> frozenset[str] | None:
    own = frozenset(op.parameters.values())
    rest = [v for i, v in enumerate(op.inputs) if i not in op.parameters]
    if op.name in ("add", "sub", "cat"):
        parts = [_sources(trace, v, known) for v in rest]
        if op.name == "cat" and not own:
            parts = parts[-1:] if parts[:1] == [None] else parts  # a cache of past keys comes first
        summed = frozenset().union(own, *(part or frozenset() for part in parts))
        return summed if all(parts) and summed else None
    if own:
        return own
    if op.name in ("mul", "div") or op.name in VIEWS or op.name == "neg":
        return next((found for v in rest if (found := _sources(trace, v, known))), None)
    return None
