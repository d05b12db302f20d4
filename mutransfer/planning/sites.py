"""Every attention's softmax scale, read off the traced graph: all numbers on q, k and the logits, multiplied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mutransfer.planning.ops import VIEWS, Op, Trace

_BETWEEN_LOGITS_AND_SOFTMAX = {"add", "add_", "masked_fill", "masked_fill_", "where", "tanh", "sub"} | VIEWS
_NORMALIZERS = {"linalg_vector_norm", "norm", "rsqrt", "sum"}
_PARTLY = ("where", "index_put", "index_put_")
_SOFTMAX = ("_softmax", "softmax", "_safe_softmax")


@dataclass(frozen=True)
class AttentionSite:
    """One softmax over q k.

    Attributes:
        module: path of the module that runs it.
        scale: the effective factor on q k, all numbers on q, k and the logits multiplied; nan where one of them is a
            tensor (a learned temperature, say).
        head_dim: the size that q and k are contracted over.
        queries, keys: the parameters that q and k come from, gains of a QK-norm included.
        ops: indices of the ops that were read: the product, and those that a number of the scale comes from.
    """

    module: str
    scale: float
    head_dim: int
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    ops: frozenset[int] = frozenset()


def attention_sites(trace: Trace) -> list[AttentionSite]:
    """Every attention in execution order: SDPA in any of its kernels, or softmax over a product of activations."""
    sites = []
    for index, op in enumerate(trace.ops):
        if op.name.startswith("_scaled_dot_product"):
            scale = op.kwargs.get("scale")
            head_dim = op.shapes[0][-1]
            own = float(scale) if scale is not None else 1 / math.sqrt(head_dim)
            sites.append(_site(trace, index, _Path(own, set()), op.inputs[0], op.inputs[1], head_dim))
        elif op.name in _SOFTMAX:
            path = _Path(1.0, set())
            product = _product(trace, op.inputs[0], path)
            if product is not None:
                found = trace.ops[product]
                q, k = found.inputs[-2:]
                sites.append(_site(trace, product, path, q, k, found.shapes[-1][1]))
    return sites


@dataclass
class _Path:
    """The numbers met on a way through the graph, multiplied, and the ops that they stand in."""

    scale: float
    ops: set[int]

    def take(self, trace: Trace, op: Op, factor: float | None) -> None:
        if factor is not None:
            self.scale *= factor
            self.ops.add(trace.index(op))


def _site(trace: Trace, index: int, path: _Path, q: int, k: int, head_dim: int) -> AttentionSite:
    for value in (q, k):
        _scalars(trace, value, path)
    queries, keys = _sources(trace, q, {}) or frozenset(), _sources(trace, k, {}) or frozenset()
    return AttentionSite(
        trace.ops[index].module,
        path.scale,
        head_dim,
        tuple(sorted(queries)),
        tuple(sorted(keys)),
        frozenset({index, *path.ops}),
    )


def _product(trace: Trace, value: int, path: _Path) -> int | None:
    """The product q k that a softmax reads; the numbers on the way are taken."""
    while (op := trace.producer(value)) is not None:
        if op.name in ("bmm", "baddbmm") and not op.parameters:
            return trace.index(op)
        factor = scalar_of(trace, op)
        if factor is None and op.name not in _BETWEEN_LOGITS_AND_SOFTMAX:
            return None
        path.take(trace, op, factor)
        value = _larger(op)
    return None


def _larger(op: Op) -> int:
    """The operand that the others are broadcast to, the first of several: not a mask, nor where's condition."""
    operands = list(zip(op.inputs, op.shapes, strict=True))[1 if op.name == "where" else 0 :]
    return max(operands, key=lambda operand: math.prod(operand[1]))[0]


def scalar_of(trace: Trace, op: Op) -> float | None:
    """What an op multiplies its one activation by, if that is all it does: a number, or nan for what no input of the
    model reaches and the trace does not know (a learned temperature)."""
    name = op.name.rstrip("_")
    if name not in ("mul", "div") or (op.static and not op.parameters):
        return None
    if len(op.inputs) == 1 and len(op.scalars) == 1:
        (number,) = op.scalars
        return number if name == "mul" else 1 / number if number else math.inf
    if len(op.inputs) == 2 and math.prod(op.shapes[1]) < math.prod(op.result_shapes[0]):
        temperature = trace.producer(op.inputs[1])
        known = op.parameters or (temperature is not None and temperature.static)
        return math.nan if known and math.prod(op.shapes[1][-2:]) <= 1 else None
    return None


def _scalars(trace: Trace, value: int, path: _Path) -> None:
    """Takes the numbers that a value is multiplied by on the way back to the parameters that set its size."""
    while (op := trace.producer(value)) is not None and not op.parameters:
        factor = scalar_of(trace, op)
        if factor is None and op.name not in VIEWS | {"add", "mul", "cat", "neg"}:
            break
        path.take(trace, op, factor)
        value = op.inputs[-1 if op.name == "cat" else 0]  # a cache of past keys comes first


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
    if own & op.shifted or (op.name in ("mul", "div") and normalizes(trace, op)) or op.name in _PARTLY:
        return None  # a factor on 1 + w is none on w, a norm divides it out again
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


def normalizes(trace: Trace, op: Op) -> Literal["sum", "mean", ""]:
    """Whether an activation is divided by its own norm: by the root of a sum of squares, or of their mean."""
    if len(op.inputs) != 2:
        return ""
    names: set[str] = set()
    todo = [op.inputs[1]]
    for _ in range(8):  # norm, clamp, rsqrt, expand: a few ops
        producers = [p for v in todo if (p := trace.producer(v)) is not None]
        names |= {p.name for p in producers}
        todo = [v for p in producers for v in p.inputs]
        if op.inputs[0] in todo:
            return "mean" if "mean" in names else "sum" if names & _NORMALIZERS else ""
    return ""
