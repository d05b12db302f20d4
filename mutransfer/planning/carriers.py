"""Which parameters, or rows of them, one value is proportional to while nothing else depends on them.

No shape and no name says which rows of a fused projection make an attention's queries. So the part of the graph that
lies between parameters and the ops that end them is run once more on random numbers in float64: gradients show the
rows, and a factor on these rows proves them. It must arrive at the value, whole, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map

from mutransfer.planning.calls import ADDITIVE, PROPORTIONAL, tensors_in
from mutransfer.planning.data import Rows
from mutransfer.planning.ops import VIEWS, Op, Trace
from mutransfer.planning.trace import trace
from mutransfer.planning.tracer import Tracer

_SUMS = {"add", "sub", "cat", "stack"}
_KEEPS = VIEWS | PROPORTIONAL | ADDITIVE | {"view_as_real", "view_as_complex", "_reshape_alias", "_conj", "complex"}
"""Ops that are run once more; whatever else reads a value ends the graph there."""
_FACTOR = 4.0
"""What rows are multiplied by to prove them; a power of two, so exactly."""


@dataclass(frozen=True)
class Target:
    """An operand: the index of the op that reads it, and the number of the value."""

    op: int
    value: int


@dataclass(frozen=True)
class _Step:
    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    numbers: Mapping[int, int]


class _Recorder(Tracer):
    """A trace that keeps every op with its arguments, as many as `Trace.ops` has."""

    def __init__(self, parameters: Mapping[str, Tensor], inputs: Any) -> None:
        super().__init__(parameters, inputs)
        self.steps: list[_Step] = []
        self.parameters = {self.number(p): (name, p) for name, p in reversed(list(parameters.items()))}

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: Any, known: bool) -> None:
        numbers = {id(t): self.number(t) for t in tensors_in((args, kwargs))}
        super()._record(func, args, kwargs, results, known)
        self.steps.append(_Step(func, args, kwargs, numbers))


@dataclass(frozen=True)
class Graph:
    """A trace whose ops can be run once more.

    Attributes:
        trace: of the model.
        steps: one for each of its ops.
        parameters: value -> the parameter that it is, and a tensor of its size.
        proven: parts of the graph -> their rows, by the order in which values are met: equal blocks are proven once.
    """

    trace: Trace
    steps: Sequence[_Step]
    parameters: Mapping[int, tuple[str, Tensor]]
    proven: dict[Any, Mapping[int, Rows | None]] = field(default_factory=dict, repr=False)

    def makers(self, value: int) -> frozenset[str]:
        """The last parameters on the way to a value, those that are added to it after others included."""
        found: set[str] = set()
        waiting, seen = [value], set()
        while waiting:
            value = waiting.pop()
            op = self.trace.producer(value)
            if value in self.parameters:
                found.add(self.parameters[value][0])
            elif op is not None and value not in seen:
                seen.add(value)
                waiting += self._onward(op)
        return frozenset(found)

    def _onward(self, op: Op) -> list[int]:
        name = op.name.rstrip("_")
        if op.static or (not op.parameters and name in _KEEPS):
            return list(op.inputs)
        if not op.parameters:
            return []
        return [value for value in op.inputs if name in _SUMS or self.is_static(value)]

    def is_static(self, value: int) -> bool:
        op = self.trace.producer(value)
        return value in self.parameters or (op is not None and op.static)


def record(model: nn.Module, inputs: Sequence[Any] | Mapping[str, Any]) -> Graph:
    """Traces a model, and keeps what can be run once more. See `trace`."""
    made: list[_Recorder] = []

    def make(parameters: Mapping[str, Tensor], given: Any) -> Tracer:
        made.append(_Recorder(parameters, given))
        return made[-1]

    traced = trace(model, inputs, tracer=make)
    own = next(recorder for recorder in made if recorder.traced is traced)
    return Graph(traced, own.steps, own.parameters)


def carriers(graph: Graph, targets: Collection[Target], names: Collection[str]) -> Mapping[str, Rows | None] | str:
    """The rows of the named parameters that the targets are proportional to; None where that is all of a parameter.

    Returns:
        Or, in words, why a factor on them would do something else.
    """
    if any(graph.trace.ops[target.op].inputs.count(target.value) > 1 for target in targets):
        return "they are multiplied by themselves"
    leaves = {number: tensor for number, (name, tensor) in graph.parameters.items() if name in names}
    part = _Part(graph, frozenset(targets), leaves)
    signature, order = part.signature()
    if signature not in graph.proven:
        found = _prove(part, leaves)
        if isinstance(found, str):
            return found
        graph.proven[signature] = {order[number]: rows for number, rows in found.items()}
    proven = graph.proven[signature]
    return {graph.parameters[n][0]: proven[order[n]] for n in leaves if order[n] in proven}


def _prove(part: _Part, like: Mapping[int, Tensor]) -> Mapping[int, Rows | None] | str:
    """Value of a parameter -> its rows."""
    run = _Replay(part)
    leaves = {number: run.draw(number, tensor) for number, tensor in like.items()}
    found = {number: _rows(gradient) for number, gradient in run.gradients(leaves).items() if gradient.any()}
    with torch.no_grad():
        before = run.ends(leaves)
        if not found:
            lost = next((f" once {_reader(part.graph, end)} has read them" for end in before), "")
            return f"no parameter can be seen to set their size{lost}"
        after = run.ends({n: scaled(leaf, found[n], _FACTOR) if n in found else leaf for n, leaf in leaves.items()})
    for end, value in before.items():
        factor = _FACTOR if end in part.targets else 1.0
        if not torch.allclose(after[end], value * factor, rtol=1e-9, atol=0.0):
            return _reason(part.graph, end, part.targets)
    return found


def _reason(graph: Graph, end: Target, targets: Collection[Target]) -> str:
    if end in targets:
        return "those are not proportional to it"
    if end.op == len(graph.trace.ops):
        return "the model returns what it makes"
    return f"it also makes what {_reader(graph, end)} reads"


def _reader(graph: Graph, end: Target) -> str:
    if end.op == len(graph.trace.ops):
        return "the caller"
    op = graph.trace.ops[end.op]
    return f"{op.name.strip('_')!r} in {op.module or 'the model itself'!r}"


def _rows(gradient: Tensor) -> Rows | None:
    """The entries along one dimension that have a gradient; None where that is all of them along every dimension."""
    for axis in range(gradient.ndim):
        others = [other for other in range(gradient.ndim) if other != axis]
        own = gradient.ne(0).sum(others).ne(0) if others else gradient.ne(0)
        if not own.all():
            return Rows.of(axis, own.tolist())
    return None


def scaled(value: Tensor, rows: Rows | None, factor: float) -> Tensor:
    """A tensor with some of its rows multiplied, in operations that differentiate, compile and shard."""
    if rows is None:
        return value * factor
    repeated = value.unflatten(rows.axis, (-1, rows.period))
    parts = repeated.split(rows.sizes, rows.axis + 1)
    return torch.cat(
        [part * factor if own else part for part, own in zip(parts, rows.own, strict=True)], rows.axis + 1
    ).flatten(rows.axis, rows.axis + 1)


class _Part:
    """What lies between parameters and the ops that end it.

    Args:
        graph: the whole.
        targets: operands that end it.
        leaves: values of the parameters.

    Attributes:
        ops: (index of an op, the values it reads that the parameters reach, whether it is run on), in order; after the
            last op stand the values that the model returns.
    """

    def __init__(self, graph: Graph, targets: frozenset[Target], leaves: Collection[int]) -> None:
        self.graph, self.targets, self.leaves = graph, targets, tuple(leaves)
        self.ops: list[tuple[int, tuple[int, ...], bool]] = []
        at, derived = {target.op for target in targets}, set(leaves)
        for index, op in enumerate(graph.trace.ops):
            reached = tuple(value for value in op.inputs if value in derived)
            if reached:
                runs = index not in at and self._runs(op, reached, graph.steps[index], derived)
                self.ops.append((index, reached, runs))
                derived |= set(op.outputs) if runs else set()
        self.ops.append((len(graph.trace.ops), tuple(sorted(graph.trace.results & derived)), False))

    def _runs(self, op: Op, reached: Sequence[int], step: _Step, derived: Collection[int]) -> bool:
        others = [t for t in tensors_in((step.args, step.kwargs)) if step.numbers[id(t)] not in derived]
        if any(_is_index(t) and self.known(step.numbers[id(t)], t) is None for t in others):
            return False  # which entries it takes is not known
        if op.name.endswith("_") and op.inputs[0] not in reached:
            return False  # written into something else
        return op.name.rstrip("_") in _KEEPS or all(self.graph.is_static(value) for value in reached)

    def known(self, number: int, tensor: Tensor) -> Tensor | None:
        """The value of an index that no input reaches, if the code itself wrote it."""
        value = getattr(tensor, "constant", None) if isinstance(tensor, FakeTensor) else tensor
        op = self.graph.trace.producer(number)
        fixed = op.static if op is not None else number not in self.graph.trace.given
        return value if fixed else None

    def signature(self) -> tuple[Any, Mapping[int, int]]:
        """All that a run depends on, with values numbered as they are met; and their numbers."""
        order: dict[int, int] = {}
        said: list[Any] = [self._said(number, self.graph.parameters[number][1], order) for number in self.leaves]
        for index, reached, runs in self.ops[:-1]:
            step, op = self.graph.steps[index], self.graph.trace.ops[index]
            met = tree_map(lambda value, step=step: self._value(value, step, order), (step.args, dict(step.kwargs)))
            ended = [order[value] for value in reached if Target(index, value) in self.targets]
            made = [order.setdefault(value, len(order)) for value in op.outputs]
            said.append((str(step.func), repr(met), tuple(ended), tuple(made), runs, self._read(reached, order)))
        return (tuple(said), self._read(self.ops[-1][1], order)), order

    @staticmethod
    def _read(values: Sequence[int], order: Mapping[int, int]) -> tuple[int, ...]:
        return tuple(order[value] for value in values)

    def _value(self, value: Any, step: _Step, order: dict[int, int]) -> Any:
        return self._said(step.numbers[id(value)], value, order) if isinstance(value, Tensor) else value

    def _said(self, number: int, tensor: Tensor, order: dict[int, int]) -> Any:
        index = self.known(number, tensor) if _is_index(tensor) else None
        entries = None if index is None else index.tolist()
        place = order.setdefault(number, len(order))
        return place, tuple(tensor.shape), tensor.stride(), str(tensor.dtype), entries


class _Replay:
    """Runs a part once more on random numbers, always the same ones."""

    def __init__(self, part: _Part) -> None:
        self.part, self.graph = part, part.graph
        self._drawn: dict[int, Tensor] = {}

    def draw(self, number: int, like: Tensor) -> Tensor:
        """What stands for a value that no leaf reaches."""
        if number not in self._drawn:
            self._drawn[number] = _random(like, number)
        return self._drawn[number]

    def gradients(self, leaves: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Of all targets together, by random weights."""
        free = {number: leaf.clone().requires_grad_() for number, leaf in leaves.items()}
        with torch.enable_grad():
            ends = self.ends(free)
            values = [value for end, value in ends.items() if end in self.part.targets and value.requires_grad]
            if not values:
                return {}
            total = torch.stack([(value * _random(value, -1)).real.sum() for value in values]).sum()
            found = torch.autograd.grad(total, list(free.values()), allow_unused=True)
        return {number: gradient for number, gradient in zip(free, found, strict=True) if gradient is not None}

    def ends(self, leaves: Mapping[int, Tensor]) -> dict[Target, Tensor]:
        """Every operand that leaves reach and that is not run on: the targets, and whatever else reads one."""
        values = dict(leaves)
        ends: dict[Target, Tensor] = {}
        for index, reached, runs in self.part.ops:
            if runs:
                results = self._run(self.graph.steps[index], values)
                values |= dict(zip(self.graph.trace.ops[index].outputs, results, strict=True))
            else:
                ends |= {Target(index, value): values[value].clone() for value in reached}
        return ends

    def _run(self, step: _Step, values: Mapping[int, Tensor]) -> list[Tensor]:
        def real(value: Any) -> Any:
            if isinstance(value, Tensor):
                number = step.numbers[id(value)]
                if number in values:
                    return values[number]
                return self.part.known(number, value) if _is_index(value) else self.draw(number, value)
            if isinstance(value, torch.dtype) and value.is_floating_point:
                return torch.float64
            return torch.device("cpu") if isinstance(value, torch.device) else value

        args, kwargs = tree_map(real, (step.args, dict(step.kwargs)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # dropout
            return list(tensors_in((step.func(*args, **kwargs),)))


def _is_index(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _random(like: Tensor, seed: int) -> Tensor:
    """Numbers of a tensor's size and, where no two of its entries are one, of its strides."""
    generator = torch.Generator().manual_seed(seed + 1)
    if like.dtype == torch.bool:
        return torch.rand(like.shape, generator=generator) > 0.5
    dtype = torch.complex128 if like.is_complex() else torch.float64
    numbers = torch.randn(like.shape, generator=generator, dtype=dtype)
    repeated = any(stride == 0 and size > 1 for stride, size in zip(like.stride(), like.shape, strict=True))
    return numbers if repeated else torch.empty_strided(like.shape, like.stride(), dtype=dtype).copy_(numbers)
