"""A forward pass on real values, recorded op by op so that it can be run again with other parameters, and with a factor
on one operand of any op."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mutransfer.planning.calls import tensors_in
from mutransfer.planning.ops import Trace
from mutransfer.planning.trace import unfused
from mutransfer.planning.tracer import Tracer


@dataclass(frozen=True)
class _Step:
    """One dispatched op; `index` is its place in `Trace.ops`, None for one that is not recorded there."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Tensor, ...]
    index: int | None
    grad: bool


class Recording(Tracer):
    """A trace on real values in float64: whatever precision the forward pass asks for, it gets float64."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__(dict(model.named_parameters()), (args, kwargs))
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._steps: list[_Step] = []
        self._made: set[int] = set()
        self._given: dict[int, Tensor] = {}
        given = frozenset(self.number(t) for t in tensors_in((args, kwargs)))
        with unfused(), torch.enable_grad(), _float64_by_default(), self:
            out = model(*args, **kwargs)
        self.outputs = [t for t in tensors_in((out,)) if t.is_floating_point() and id(t) in self._made]
        self.trace = Trace(
            self.uses(),
            tuple(self.ops),
            frozenset(self.number(t) for t in self.outputs),
            frozenset(self.normalized),
            given,
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {key: _widened(value) for key, value in (kwargs or {}).items()}
        for tensor in tensors_in((args, kwargs)):
            if id(tensor) not in self._made and id(tensor) not in self._given:
                self.number(tensor)
                self._given[id(tensor)] = tensor.detach().clone()
        recorded = len(self.ops)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if _is_grouped(func):
            out.copy_(_run(func, args, kwargs))
        results = tuple(tensors_in((out,)))
        self._made.update(map(id, results))
        index = recorded if len(self.ops) > recorded else None
        self._steps.append(_Step(func, args, kwargs, results, index, torch.is_grad_enabled()))
        return out

    @property
    def ends(self) -> list[Tensor]:
        """Every value that depends on a parameter and that nothing differentiable reads: the outputs, a part that the
        inputs run and the output leaves out, what is rounded to a code."""
        read: set[int] = set()
        found: list[Tensor] = []
        for step, results in reversed(list(zip(self._steps, self._differentiable(), strict=True))):
            found += [t for t in results if id(t) not in read]
            if results:
                read.update(map(id, (*_read_by(step), *results)))
        return found

    def _differentiable(self) -> list[list[Tensor]]:
        """Step by step, what it makes that depends on a parameter, by way of what ran without gradients too."""
        depends = set(self.names)
        found: list[list[Tensor]] = []
        for step in self._steps:
            passes = not step.grad and step.func.overloadpacket.__name__ != "detach"
            passes = passes and any(id(t) in depends for t in _read_by(step))
            found.append([t for t in step.results if t.is_floating_point() and (t.requires_grad or passes)])
            depends.update(map(id, found[-1]))
        return found

    def results(self, ops: Collection[int]) -> list[Tensor]:
        """What some ops of the trace give."""
        return [t for step in self._steps if step.index in ops for t in step.results]

    def replay(
        self,
        parameters: Mapping[str, Tensor],
        factors: Mapping[tuple[int, int], Tensor],
        wanted: Sequence[Tensor],
        *,
        everywhere: bool = False,
    ) -> list[Tensor]:
        """Recorded values once more, the outputs or others.

        Args:
            parameters: by name, instead of the recorded ones.
            factors: (index of an op, position among its tensors) -> what that operand is multiplied by first.
            wanted: the values.
            everywhere: gradients pass through what ran without them too (a part that is never trained).
        """
        values = {at: given.clone() for at, given in self._given.items()}
        values |= {at: parameters[name] for at, name in self.names.items()}
        for step in self._steps:
            args, kwargs = tree_map(_lookup(values), (step.args, step.kwargs))
            if step.index is not None:
                args = _multiplied(args, {at: c for (op, at), c in factors.items() if op == step.index})
            with torch.set_grad_enabled(step.grad or everywhere), _float64_by_default():
                out = _run(step.func, args, kwargs)
            values |= {id(old): new for old, new in zip(step.results, tensors_in((out,)), strict=True)}
        return [values[id(value)] for value in wanted]


def _read_by(step: _Step) -> list[Tensor]:
    return list(tensors_in((step.args, step.kwargs)))


def _lookup(values: Mapping[int, Tensor]) -> Any:
    return lambda value: values[id(value)] if isinstance(value, Tensor) else value


def _multiplied(args: tuple[Any, ...], factors: Mapping[int, Tensor]) -> tuple[Any, ...]:
    """An add's operands come first among its arguments; what is written in place is multiplied into a copy."""
    return tuple(value * factors[at] if at in factors else value for at, value in enumerate(args)) if factors else args


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


@contextmanager
def _float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _is_grouped(func: Any) -> bool:
    return str(func.overloadpacket.__name__) == "_grouped_mm"


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """torch's own grouped product is for bfloat16 alone."""
    if not _is_grouped(func):
        return func(*args, **kwargs)
    rows, matrices, *rest = args
    offsets = kwargs.get("offs", rest[0] if rest else None)
    if offsets is None:
        return rows @ matrices
    ends: Iterable[int] = offsets.tolist()
    starts = [0, *ends][:-1]
    parts = [rows[a:b] @ matrix for a, b, matrix in zip(starts, ends, matrices, strict=True)]
    tail = rows.new_zeros(rows.shape[0] - sum(len(part) for part in parts), matrices.shape[-1])
    return torch.cat([*parts, tail])
