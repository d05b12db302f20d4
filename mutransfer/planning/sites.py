"""Every attention's softmax scale, read off the traced graph: all numbers on q, k and the logits, multiplied."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from mutransfer.planning.ops import VIEWS, Op, Trace

_BETWEEN_LOGITS_AND_SOFTMAX = {"add", "add_", "masked_fill", "masked_fill_", "where", "tanh", "sub"} | VIEWS
_NORMALIZERS = {"linalg_vector_norm", "norm", "rsqrt", "sum"}
_SOFTMAX = ("_softmax", "softmax", "_safe_softmax")


@dataclass(frozen=True)
class AttentionSite:
    """One softmax over q k.

    Attributes:
        module: path of the module that runs it.
        scale: the effective factor on q k, all numbers on q, k and the logits multiplied; nan where one of them is a
            tensor (a learned temperature, say).
        number: of these the numbers alone, multiplied.
        head_dim: the size that q and k are contracted over.
        product: index of the op that multiplies q and k.
        queries, keys: the values that it reads.
        ops: indices of the ops that were read: the product, and those that a number of the scale comes from.
        temperatures: (index of an op, value) of every tensor that multiplies the logits.
        unit: q and k are vectors of length 1, so their product does not grow with head_dim.
    """

    module: str
    scale: float
    number: float
    head_dim: int
    product: int
    queries: int
    keys: int
    ops: frozenset[int]
    temperatures: tuple[tuple[int, int], ...] = ()
    unit: bool = False


def attention_sites(trace: Trace) -> list[AttentionSite]:
    """Every attention in execution order: SDPA in any of its kernels, or softmax over a product of activations."""
    sites = []
    for index, op in enumerate(trace.ops):
        if op.name.startswith("_scaled_dot_product"):
            scale = op.kwargs.get("scale")
            head_dim = op.shapes[0][-1]
            own = float(scale) if scale is not None else 1 / math.sqrt(head_dim)
            sites.append(_site(trace, index, _Path(own), op.inputs[0], op.inputs[1], head_dim))
        elif op.name in _SOFTMAX:
            path = _Path(1.0)
            product = _product(trace, op.inputs[0], path)
            if product is not None:
                found = trace.ops[product]
                q, k = found.inputs[-2:]
                sites.append(_site(trace, product, path, q, k, found.shapes[-1][1]))
    return sites


@dataclass
class _Path:
    """The numbers met on a way through the graph, multiplied; the ops that hold them, and tensors in their stead."""

    number: float
    ops: set[int] = field(default_factory=set)
    learned: bool = False
    temperatures: list[tuple[int, int]] = field(default_factory=list)

    def take(self, trace: Trace, op: Op, factor: float | None) -> None:
        if factor is None:
            return
        self.ops.add(trace.index(op))
        self.number *= 1.0 if math.isnan(factor) else factor
        self.learned |= math.isnan(factor)
        if math.isnan(factor) and op.name.rstrip("_") == "mul":
            self.temperatures.append((trace.index(op), op.inputs[1]))


def _site(trace: Trace, index: int, path: _Path, q: int, k: int, head_dim: int) -> AttentionSite:
    temperatures = tuple(path.temperatures)  # of the logits: those on q and k are found with what makes them
    unit = [_scalars(trace, value, path, head_dim) for value in (q, k)]
    module, ops = trace.ops[index].module, frozenset({index, *path.ops})
    scale = math.nan if path.learned else path.number
    return AttentionSite(module, scale, path.number, head_dim, index, q, k, ops, temperatures, all(unit))


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
    if op.name.rstrip("_") not in ("mul", "div") or (op.static and not op.parameters):
        return None
    if len(op.inputs) == 1 and len(op.scalars) == 1:
        return _number_of(op)
    if len(op.inputs) == 2 and math.prod(op.shapes[1]) < math.prod(op.result_shapes[0]):
        temperature = trace.producer(op.inputs[1])
        known = op.parameters or (temperature is not None and temperature.static)
        return math.nan if known and math.prod(op.shapes[1][-2:]) <= 1 else None
    return None


def _number_of(op: Op) -> float | None:
    """What an op multiplies its one operand by, if that is all it does."""
    name = op.name.rstrip("_")
    if name not in ("mul", "div") or len(op.inputs) != 1 or len(op.scalars) != 1:
        return None
    (number,) = op.scalars
    return number if name == "mul" else 1 / number if number else math.inf


def _scalars(trace: Trace, value: int, path: _Path, head_dim: int) -> bool:
    """Takes the numbers that a value is multiplied by on the way back to the parameters that set its size, or to a
    norm, those on learned queries that no input reaches as well. Returns whether that norm brings its vectors of
    `head_dim` entries to length 1."""
    while (op := trace.producer(value)) is not None and not op.parameters:
        if kind := normalizes(trace, op):
            return kind == "sum" and _normalized_size(trace, op) == head_dim
        factor = _number_of(op) if op.static else scalar_of(trace, op)
        if factor is None and op.name not in VIEWS | {"add", "mul", "cat", "neg"}:
            break
        path.take(trace, op, factor)
        value = op.inputs[-1 if op.name == "cat" else 0]  # a cache of past keys comes first
    return False


def normalizes(trace: Trace, op: Op) -> Literal["sum", "mean", ""]:
    """Whether an activation is divided by its own norm: by the root of a sum of squares, or of their mean."""
    names = {norm.name for norm in _norm(trace, op)}
    return "mean" if "mean" in names else "sum" if names & _NORMALIZERS else ""


def _normalized_size(trace: Trace, op: Op) -> int:
    """Over how many entries the norm goes that divides an activation."""
    sums = (norm for norm in _norm(trace, op) if norm.name in _NORMALIZERS - {"rsqrt"})
    return max((math.prod(norm.shapes[0]) // max(1, math.prod(norm.result_shapes[0])) for norm in sums), default=0)


def _norm(trace: Trace, op: Op) -> list[Op]:
    """The ops that make what an activation is divided by of that activation; none where they do not."""
    if op.name.rstrip("_") not in ("mul", "div") or len(op.inputs) != 2:
        return []
    found: list[Op] = []
    waiting = [op.inputs[1]]
    for _ in range(8):  # norm, clamp, rsqrt, expand: a few ops
        producers = [p for v in waiting if (p := trace.producer(v)) is not None]
        found += producers
        waiting = [v for p in producers for v in p.inputs]
        if op.inputs[0] in waiting:
            return found
    return []
