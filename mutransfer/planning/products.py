"""Parameters whose entries stand in an activation, each beside its own, until something sums them.

`(h * v).sum(-1)` contracts v as `h @ v` does; a weight times a style contracts where the product is a convolution's
kernel; one matrix a head contracts the heads where they are summed afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from mutransfer.planning.calls import (
    ADDITIVE,
    CONTRACTIONS,
    NORMS,
    PROPORTIONAL,
    Call,
    address,
    kernel_axes,
    moved,
    reduced,
)
from mutransfer.planning.layout import Dims, Labels, Layout, broadcast, union
from mutransfer.planning.ops import Use

_LINEAR = (ADDITIVE | PROPORTIONAL) - {"_weight_norm_interface"}
_LENGTHS = ("linalg_vector_norm", "norm")


@dataclass(frozen=True)
class _Within:
    """One parameter in one activation.

    Attributes:
        layout: where its entries stand.
        shared: its dimensions that the activation it met has too, so that each entry meets its own.
        added: it was added, not multiplied.
        spread: the activation that it met lacks some of its dimensions, as a style lacks a kernel's outputs.
        bent: a nonlinear function came after.
        summed: of its dimensions, those that were summed already (one matrix a head), by the use `at`.
    """

    layout: Layout
    shared: Dims
    added: bool = False
    spread: bool = False
    bent: bool = False
    summed: Dims = frozenset()
    at: int = -1

    @property
    def is_table(self) -> bool:
        return self.added and sum(size > 1 for _, size, dims in self.layout.axes if dims) > 1

    @property
    def is_weight(self) -> bool:
        return not self.added and self.at < 0


@dataclass
class _Value:
    """An activation with parameters in it, and how many ops have read it."""

    parts: tuple[_Within, ...]
    source: _Value | None = None
    readers: int = 0

    def read_once(self) -> bool:
        return self.readers == 1 and (self.source is None or self.source.read_once())


@dataclass(frozen=True)
class _Sum:
    """What a sum is to a parameter, if nothing else reads what is summed."""

    value: _Value
    name: str
    uses: tuple[Use, ...]
    replaces: int


class Products:
    """Follows the parameters in the activations of one forward pass."""

    def __init__(self) -> None:
        self._values: dict[int, _Value] = {}
        self._sums: list[_Sum] = []

    def settle(self, uses: dict[str, list[Use]]) -> None:
        """Adds the contractions that the sums turned out to be."""
        for found in self._sums:
            if found.value.read_once():
                kept = [use for use in uses[found.name] if use.op != found.replaces]
                uses[found.name] = [*kept, *found.uses]

    def modulated(self, tensor: Tensor) -> tuple[Layout, ...]:
        """The parameters that an activation holds as weights, each of them times what an input says."""
        value = self._values.get(address(tensor))
        return tuple(part.layout for part in value.parts if part.is_weight and part.spread) if value else ()

    def weights(self, call: Call) -> dict[int, tuple[_Within, ...]]:
        """Operands of a contraction that are weights made of a parameter and an activation, and what they hold.

        A weight brings its own rows or columns to the result; a query times a gain brings positions, and is none.
        """
        found = {}
        for index, tensor in call.held.items():
            value = self._values.get(address(tensor))
            if value is None or any(other != index for other in call.layouts):
                continue
            parts = tuple(p for p in value.parts if p.is_weight and _brings_its_own(call, index, p.layout))
            if parts:
                found[index] = parts
        return found

    def begin(self, call: Call, index: int, layout: Layout, use: Use) -> None:
        """An activation met a parameter that an operand holds, entry by entry or in one matrix a head."""
        if use.kind == "elementwise" and call.elementwise and call.name not in NORMS:
            made = _met(call, index, layout, use)
        elif use.kind == "contraction" and use.batch and not use.partner:
            made = _stacked(call, layout, use)
        else:
            return
        value = self._values.get(address(call.results[0]))
        if value is not None and value.readers == 0:  # made by this op, of another operand
            self._set(call, (*value.parts, made), value.source)
        else:
            self._set(call, (made,), None)

    def follow(self, call: Call, seen: Use) -> None:
        """What an op does to the parameters within its operands. `seen` is a use by that op."""
        followed: list[_Within] = []
        source = None
        values = {i: v for i, t in call.held.items() if (v := self._values.get(address(t))) is not None}
        for value in {id(v): v for v in values.values()}.values():
            value.readers += 1
        for index, value in values.items():
            tensor = call.held[index]
            if call.name == "sum" or call.name in _LENGTHS:
                self._sum(call, tensor, value, seen)
            elif parts := [p for p in value.parts if (p.is_weight and p.spread) or value.read_once()]:
                others = {p.layout.parameter for i, v in values.items() if i != index for p in v.parts}
                followed += _passed(call, index, parts, others)
                source = value
        if followed:
            self._set(call, tuple(dict.fromkeys(followed)), source)
        elif call.in_place and call.results:
            self._values.pop(address(call.results[0]), None)

    def _set(self, call: Call, parts: tuple[_Within, ...], source: _Value | None) -> None:
        self._values[address(call.results[0])] = _Value(parts, source)

    def _sum(self, call: Call, tensor: Tensor, value: _Value, seen: Use) -> None:
        args = call.args if call.name == "sum" else (call.args[0], *call.args[2:])
        for part in value.parts:
            labels = part.layout.label(tensor)
            axes = {axis % tensor.ndim for axis in reduced(args, tensor)}
            kept = [axis for axis in range(tensor.ndim) if axis not in axes]
            if summed := union(labels, sorted(axes)) - union(labels, kept):  # pairs of features: a part of a dimension
                bent = part.bent or call.name in _LENGTHS
                replaces = part.at if not bent else -1
                uses = tuple(_contracted(part, summed, seen, doubtful=bent))
                self._sums.append(_Sum(value, part.layout.parameter, uses, replaces))


def weight_uses(call: Call, index: int, parts: tuple[_Within, ...], seen: Use) -> Iterator[tuple[str, Use]]:
    """What a contraction does to the parameters in a weight made of them and an activation."""
    for part in parts:
        labels = part.layout.label(call.held[index])
        contracted, batch = _axes(call, index, part.layout)
        own = replace(part, shared=union(labels, batch))
        for use in _contracted(own, union(labels, contracted), seen, doubtful=not part.spread):
            yield part.layout.parameter, replace(use, nonlinear=part.bent)


def _contracted(part: _Within, summed: Dims, seen: Use, *, doubtful: bool) -> Iterator[Use]:
    """A contraction; and where it is doubtful, a second one that agrees if what is summed is of a fixed size alone."""
    summed |= part.summed
    batch = frozenset() if part.is_table else part.shared - summed
    yield replace(seen, contracted=summed, batch=batch)
    if doubtful and part.at < 0:
        yield replace(seen, batch=batch | summed)


def _met(call: Call, index: int, layout: Layout, use: Use) -> _Within:
    result = call.results[0]
    others = [t for i, t in call.held.items() if i != index]
    wide = {axis % result.ndim for t in others for axis in range(-t.ndim, 0) if t.shape[axis] > 1}
    labels = broadcast(layout.label(call.held[index]), result.ndim)
    shared = union(labels, sorted(wide))
    own = Layout.of(layout.parameter, result, labels)
    spread = bool(union(labels, range(result.ndim)) - shared)
    return _Within(own, shared, use.additive, spread, not _linear(call, index) or layout.form == "nonlinear")


def _stacked(call: Call, layout: Layout, use: Use) -> _Within:
    """The result of one matrix a head, or of one kernel a channel: the heads run along it."""
    result = call.results[0]
    axis = 1 if "convolution" in call.name else 0
    labels = tuple(use.batch if a == axis else frozenset() for a in range(result.ndim))
    return _Within(Layout.of(layout.parameter, result, labels), use.batch, summed=use.contracted, at=use.op)


def _passed(call: Call, index: int, parts: list[_Within], others: Collection[str]) -> Iterator[_Within]:
    """What an op hands on of the parameters within an operand; `others` are within its other operands."""
    factor = call.name in ("mul", "div")
    if not call.elementwise or (factor and any(other != index for other in call.layouts)):
        return  # where another parameter multiplies, it is the other that is summed
    for part in parts:
        name = part.layout.parameter
        bent = part.bent or not _linear(call, index) or (factor and name in others)
        labels = moved(call, part.layout.label(call.held[index]))
        yield replace(part, layout=Layout.of(name, call.results[0], labels), bent=bent)


def _linear(call: Call, index: int) -> bool:
    return call.name in _LINEAR and not (call.name == "div" and index > 0)


def _axes(call: Call, index: int, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if "convolution" in call.name:
        return kernel_axes(call, layout) or ((), ())
    return CONTRACTIONS[call.name][index]


def _brings_its_own(call: Call, index: int, layout: Layout) -> bool:
    convolved = "convolution" in call.name and index == 1
    if not convolved and index not in CONTRACTIONS.get(call.name, {}):
        return False
    tensor = call.held[index]
    labels: Labels = layout.label(tensor)
    contracted, batch = _axes(call, index, layout)
    known = {axis % tensor.ndim for axis in (*contracted, *(() if convolved else batch))}
    free = [axis for axis in range(tensor.ndim) if axis not in known]
    return bool(union(labels, contracted) and union(labels, free))
