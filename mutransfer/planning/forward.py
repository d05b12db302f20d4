"""What a forward pass does with width beside its parameters: softmax scales, other products of activations, constants.

Base and model are compared op for op. A constant that differs and multiplies what a parameter contributes (an embedding
times sqrt(width), a readout times 1/sqrt(width)) would scale that contribution with width behind the table's back, so
the parameter carries its inverse; what cannot be decided is listed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from mutransfer.errors import few
from mutransfer.planning.graph import readers
from mutransfer.planning.ops import VIEWS, Op, Trace
from mutransfer.planning.sites import AttentionSite, attention_sites, normalizes, scalar_of
from mutransfer.planning.stacks import Stacks

_WHOLE = {"mm", "addmm", "bmm", "baddbmm", "linear", "_grouped_mm", "embedding", "index", "index_select", "mul", "mv",
          "dot", "native_layer_norm", "_fused_rms_norm"}  # fmt: skip
"""Ops of which the result is proportional to the parameters that they read, taken together."""
_ROWS_TIMES_COLUMNS = {"mm": (0, 1), "bmm": (0, 2), "addmm": (1, 1), "baddbmm": (1, 2), "dot": (0, 0), "mv": (0, 1)}
"""Op -> the operand and its dimension that is summed over."""
_SUMS = {"sum", "linalg_vector_norm", "norm", "logsumexp"}
_ENTRYWISE = {"pow", "exp", "abs", "square"}
T = TypeVar("T")


@dataclass(frozen=True)
class Forward:
    """One model's forward pass at one size.

    Attributes:
        scales: attention (its module's path, with #2 for its second, ...) -> (head_dim, softmax scale).
        products: (module, size summed over) of every other sum over activations.
        constants: (module, factor) of every activation times a number, those of the scales left out.
    """

    scales: Mapping[str, tuple[int, float]]
    products: tuple[tuple[str, int], ...] = ()
    constants: tuple[tuple[str, float], ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        scales = {k: (int(v[0]), math.nan if v[1] is None else float(v[1])) for k, v in data["scales"].items()}
        products = tuple((str(module), int(size)) for module, size in data["products"])
        constants = tuple((str(m), math.nan if value is None else float(value)) for m, value in data["constants"])
        return cls(scales, products, constants)

    def seen_from(self, model: Forward, stacks: Stacks, *, shared: bool = False) -> Forward:
        """The same of a base under the names of a model's modules, whose blocks may be more or fewer.

        Args:
            shared: a module may run more or less often than at the base, once for every layer (ALBERT).
        """
        scales = _by_module(_unnumbered(self.scales), _unnumbered(model.scales), stacks, shared)
        return Forward(
            dict(zip(_numbered(module for module, _ in scales), (scale for _, scale in scales), strict=True)),
            _by_module(self.products, model.products, stacks, shared),
            _by_module(self.constants, model.constants, stacks, shared),
        )


def _by_module(
    base: Sequence[tuple[str, T]], model: Sequence[tuple[str, Any]], stacks: Stacks, shared: bool
) -> tuple[tuple[str, T], ...]:
    """The base's entries in the order of the model's: a module's first for its counterpart's first, and so on."""
    known: dict[str, list[T]] = {}
    for module, value in base:
        known.setdefault(module, []).append(value)
    wanted = Counter(module for module, _ in model)
    values = {module: _as_often(known.get(stacks.module(module), []), n, shared) for module, n in wanted.items()}
    taken: Counter[str] = Counter()
    found: list[tuple[str, T]] = []
    for module, _ in model:
        found += [(module, value) for value in values[module][taken[module] : taken[module] + 1]]
        taken[module] += 1
    return (*found, *((module, value) for module in wanted for value in values[module][taken[module] :]))


def _as_often(values: list[T], wanted: int, shared: bool) -> list[T]:
    """A shared module's entries, again for every run that the model has more, or fewer."""
    if not shared or not values or (wanted % len(values) and len(values) % wanted):
        return values
    return (values * (wanted // len(values) + 1))[:wanted]


@dataclass(frozen=True)
class Correction:
    """A constant that differs between base and model, on what some parameters contribute.

    Attributes:
        parameters: of which it multiplies all that they contribute in some op -> the index of that op; -1 where it
            multiplies them before they are used.
        factor: what they carry to make up for it: the base's constant over the model's.
        why: in words.
    """

    parameters: Mapping[str, int]
    factor: float
    why: str


def forward_of(trace: Trace) -> Forward:
    """What is remembered of a forward pass."""
    sites = attention_sites(trace)
    scales = {key: (site.head_dim, site.scale) for key, site in zip(names_of(sites), sites, strict=True)}
    products = tuple((trace.ops[i].module, size) for i, size in _products(trace, sites))
    constants = tuple((trace.ops[i].module, value) for i, value in _constants(trace, sites))
    return Forward(scales, products, constants)


def names_of(sites: Sequence[AttentionSite]) -> list[str]:
    """An attention's name is its module's path, with #2 for the module's second."""
    return _numbered(site.module for site in sites)


def _numbered(modules: Iterable[str]) -> list[str]:
    seen: Counter[str] = Counter()
    keys = []
    for module in modules:
        seen[module] += 1
        keys.append(module if seen[module] == 1 else f"{module}#{seen[module]}")
    return keys


def _unnumbered(named: Mapping[str, T]) -> list[tuple[str, T]]:
    return [(key.partition("#")[0], value) for key, value in named.items()]


def compare_forward(trace: Trace, base: Forward) -> tuple[list[Correction], list[str]]:
    """The constants that the parameters must make up for, and notes on what cannot be decided."""
    sites = attention_sites(trace)
    own_constants, own_products = _constants(trace, sites), _products(trace, sites)
    notes = []
    corrections: list[Correction] = []
    if [trace.ops[i].module for i, _ in own_constants] != [module for module, _ in base.constants]:
        notes.append("the forward pass is not op for op the base's: constants that depend on width were not looked for")
    else:
        differing = [
            (trace.ops[i], value, at_base)
            for (i, value), (_, at_base) in zip(own_constants, base.constants, strict=True)
            if not math.isclose(value, at_base, rel_tol=1e-9)
        ]
        for op, value, at_base in differing:
            _correct(trace, op, value, at_base, corrections, notes)
    if [trace.ops[i].module for i, _ in own_products] == [module for module, _ in base.products]:
        grown = [
            trace.ops[i].module for (i, size), (_, at) in zip(own_products, base.products, strict=True) if size != at
        ]
        if grown:
            notes.append(
                f"sums over activations (products of two, say) go over a size that grows with width, {len(grown)} of "
                f"them, in {_in(grown)}: no parameter is contracted there, and no rule is applied"
            )
    return corrections, notes


def _correct(
    trace: Trace, op: Op, value: float, at_base: float, corrections: list[Correction], notes: list[str]
) -> None:
    """Finds the parameters whose contribution a differing constant multiplies."""
    source = _contribution(trace, op, value)
    if source == "harmless":
        return
    words = f"{op.module!r} multiplies by {value:.4g}, the base by {at_base:.4g}"
    if isinstance(source, Mapping) and value and at_base:
        corrections.append(Correction(source, at_base / value, f"makes up for a constant: {words}"))
    else:
        notes.append(f"{words}: this is no parameter's contribution alone, and is left as it is")


def _contribution(trace: Trace, op: Op, factor: float) -> Mapping[str, int] | str:
    """The parameters that what is multiplied is proportional to, all of it; "harmless" where the factor is the size
    that a sum or a norm has gone over (1/n, or its root), "" where neither can be seen."""
    if op.parameters:
        return "" if op.shifted else dict.fromkeys(op.parameters.values(), -1 if op.static else trace.index(op))
    return _made_of(trace, op.inputs[0], factor)


def _made_of(trace: Trace, value: int, factor: float) -> Mapping[str, int] | str:
    producer = trace.producer(value)
    if producer is None:
        return "" if value in trace.given else "harmless"
    if len({id(reader) for reader in readers(trace, value)}) != 1:
        return ""
    if producer.name in ("add", "add_", "sub", "cat"):
        return _made_of_all(trace, producer, factor)
    if producer.parameters:
        whole = producer.name in _WHOLE or "convolution" in producer.name
        made = dict.fromkeys(producer.parameters.values(), trace.index(producer))
        return "" if producer.shifted or not whole else made
    if producer.static:
        return "harmless"
    if producer.name == "sum" and (summed := _contracted_by(trace, producer)):
        return summed
    if producer.name == "sum":
        return "harmless" if math.isclose(factor * _gone_over(producer.shapes[0], producer.result_shapes[0]), 1) else ""
    if producer.name in ("div", "mul") and (kind := normalizes(trace, producer)):
        own = _gone_over(*producer.shapes) if kind == "sum" else 1
        return "harmless" if math.isclose(factor**2, own, rel_tol=1e-6) else ""
    if producer.name not in VIEWS and not _masks(trace, producer):
        return ""
    return _made_of(trace, producer.inputs[0], factor)


def _contracted_by(trace: Trace, op: Op) -> Mapping[str, int]:
    """The parameters that a sum contracts which they were multiplied for: (h * v).sum(-1) is h @ v."""
    index = trace.index(op)
    return {
        name: index
        for name, uses in trace.uses.items()
        if any(use.op == index and use.kind == "contraction" for use in uses)
    }


def _gone_over(whole: Sequence[int], reduced: Sequence[int]) -> int:
    """How many entries a sum or a norm is of; one that was expanded again is taken over the last dimension."""
    return math.prod(whole[-1:]) if tuple(whole) == tuple(reduced) else math.prod(whole) // max(1, math.prod(reduced))


def _made_of_all(trace: Trace, op: Op, factor: float) -> Mapping[str, int] | str:
    """Every summand must be made of parameters."""
    held = dict.fromkeys(op.parameters.values(), trace.index(op))
    reached = [value for value in op.inputs if _reached(trace, value)]
    parts = [_made_of(trace, value, factor) for value in reached]
    if op.shifted or len(held) + len(reached) < len(op.inputs):
        return ""
    for part in parts:
        if not isinstance(part, Mapping):
            return ""
        held |= part
    return held


def _masks(trace: Trace, op: Op) -> bool:
    """Whether an activation meets entries that depend on no input and no parameter, as in dropout."""
    return op.name == "mul" and len(op.inputs) == 2 and not op.parameters and not _reached(trace, op.inputs[1])


def _constants(trace: Trace, sites: Sequence[AttentionSite]) -> list[tuple[int, float]]:
    """Every activation times a number, those that an attention's scale is read from left out."""
    read = frozenset().union(*(site.ops for site in sites))
    found = ((i, scalar_of(trace, op)) for i, op in enumerate(trace.ops) if i not in read)
    return [(i, factor) for i, factor in found if factor is not None and math.isfinite(factor)]


def _products(trace: Trace, sites: Sequence[AttentionSite]) -> list[tuple[int, int]]:
    """Every sum over entries of activations, products of two among them, that no parameter is contracted in, and that
    is no attention's q k and no norm: with the size summed over."""
    read = frozenset().union(*(site.ops for site in sites))
    ruled = {use.op for uses in trace.uses.values() for use in uses if use.kind == "contraction"}
    divided = {op.inputs[0] for op in trace.ops if op.name in ("div", "mul") and normalizes(trace, op)}
    found = []
    for i, op in enumerate(trace.ops):
        if i in read or i in ruled or op.static or op.parameters or not op.inputs:
            continue
        size = _summed_size(trace, op)
        if size is None and op.name in _SUMS and _whole_of(trace, op) not in divided:
            size = _gone_over(op.shapes[0], op.result_shapes[0])
        if size is not None and not _averages(trace, op, size):
            found.append((i, size))
    return found


def _averages(trace: Trace, op: Op, size: int) -> bool:
    """Whether a sum is divided by the number of its entries right away, a mean by hand."""
    factors = [scalar_of(trace, reader) for reader in readers(trace, op.outputs[0])]
    return bool(factors) and all(factor is not None and math.isclose(factor * size, 1) for factor in factors)


def _whole_of(trace: Trace, op: Op) -> int:
    """What a sum is of, the square or the exponential in front of it left out."""
    producer = trace.producer(op.inputs[0])
    return producer.inputs[0] if producer is not None and producer.name in _ENTRYWISE else op.inputs[0]


def _summed_size(trace: Trace, op: Op) -> int | None:
    if op.name in _ROWS_TIMES_COLUMNS:
        operand, axis = _ROWS_TIMES_COLUMNS[op.name]
        dynamic = any(_reached(trace, value) for value in op.inputs[operand : operand + 2])
        return op.shapes[operand][axis] if dynamic else None
    if op.name not in ("sum", "mean"):
        return None
    value = op.inputs[0]
    while (producer := trace.producer(value)) is not None and producer.name in VIEWS:
        value = producer.inputs[0]
    if producer is None or producer.name != "mul" or len(set(producer.inputs)) != 2 or producer.parameters:
        return None
    whole = [math.prod(shape) for shape in producer.shapes]
    alone = len({id(reader) for reader in readers(trace, producer.outputs[0])}) == 1
    if not alone or min(whole) < max(whole) or not any(_reached(trace, v) for v in producer.inputs):
        return None
    return math.prod(op.shapes[0]) // max(1, math.prod(op.result_shapes[0]))


def _reached(trace: Trace, value: int) -> bool:
    """Whether an input of the model reaches a value."""
    producer = trace.producer(value)
    return value in trace.given if producer is None else not producer.static


def _in(modules: Sequence[str]) -> str:
    return few([repr(module) if module else "the model itself" for module in dict.fromkeys(modules)])
