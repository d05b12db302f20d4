"""Few positions for a weight, however many a batch has.

A weight that is applied to N vectors x_j moves by the sum over them of g_j x_j^T. Applied to x_i, that is |x_i|^2 g_i,
which grows as its fan-in n, and a sum over the others, which grows as sqrt(N n): the law is that of n far larger than
N. Images, sound and long sequences have thousands of positions, and the first layers of a network of images few
channels. So a weight learns from the few positions that have the largest gradients, 8 or a quarter of its fan-in at the
smallest width, at every width as many, and its contribution is measured there; what it passes back to its input comes
from all of them. That holds of every call in `applied.py`, also where a weight is made of parameters and buffers.
Recurrent layers and grouped products of experts learn from all; where these are too many, the check does not pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import FunctionType, MappingProxyType
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from mutransfer.check.applied import Applied, applied, einsum_in_pairs, rows_of
from mutransfer.planning.calls import tensors_in

TOKENS = 8
"""Positions per step: far fewer than the smallest width, since the tables assume full alignment."""
FEW = 4
"""Positions should be fewer than the smallest fan-in by this factor."""

_WRITES = frozenset({"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"})

_OPENED = frozenset({F.multi_head_attention_forward, Tensor.backward, torch.autograd.backward})
"""Functions with products inside: an attention, and the forward pass that a checkpoint runs in the backward one."""

_NO_BACKWARD = -1
"""The id of autograd's task while there is none."""

Key = tuple[str, int]
"""A parameter's name and the number of the product that it is in, in execution order."""
Limits = Mapping[Key, int]
"""How many positions a weight learns from at most, where that is not `TOKENS`."""


@dataclass(frozen=True)
class Chosen:
    """The positions that count.

    Attributes:
        of: how many there are.
        rows: which of them count, in the order of the result's dimensions.
    """

    of: int
    rows: Tensor


class _Learned(torch.autograd.Function):
    """A product whose weight has the gradient of another signal than its inputs and its bias have."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: Applied,
        at_few: Callable[[Tensor], Tensor],
    ) -> Tensor:
        x, w = (t.detach().requires_grad_(t.requires_grad) for t in (inputs, weight))
        b = None if bias is None else bias.detach().requires_grad_(bias.requires_grad)
        with torch.enable_grad():
            ctx.out = call.run(x, w, b)
        ctx.leaves, ctx.at_few = (x, w, b), at_few
        return cast(Tensor, ctx.out.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *signals: Tensor) -> Any:
        inputs, weight, bias = ctx.leaves
        rest = [t for t in (inputs, bias) if t is not None and t.requires_grad]
        of_rest = torch.autograd.grad(ctx.out, rest, signals[0], retain_graph=True) if rest else ()
        whole = dict(zip(map(id, rest), of_rest, strict=True))
        (own,) = torch.autograd.grad(ctx.out, weight, ctx.at_few(signals[0]), retain_graph=True)  # a loss may ask twice
        return whole.get(id(inputs)), own, whole.get(id(bias)), None, None


class FewPositions(TorchFunctionMode):
    """While it is entered, the gradient of every weight comes from the positions that its first one chose.

    Args:
        model: whose weights they are.
        limits: see `limits_between`.

    Attributes:
        fan_ins: of every product seen.
        here: the positions that count in the product that runs; None where all do.
    """

    def __init__(self, model: nn.Module, limits: Limits = MappingProxyType({})) -> None:
        super().__init__()
        self.fan_ins: dict[Key, int] = {}
        self._limits = limits
        self.here: Chosen | None = None
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._chosen: dict[Key, Chosen] = {}
        self._counts: dict[str, int] = {}
        self._again: dict[str, int] = {}
        self._depth = 0
        self._buffers = {id(buffer) for buffer in model.buffers()}
        self._made: dict[int, tuple[Tensor, str]] = {}  # from parameters alone; kept, for they are told by address

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        if not self._depth:
            self._counts.clear()
            self._again.clear()
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._made.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if inside := _inside(func, args):
            with self:
                return inside(*args, **given)
        call = applied(func, args, given, lambda tensor: self._name(tensor) is not None)
        name = self._name(call.weight) if call else None
        if call is None or name is None:
            return self._followed(func, (*args, *given.values()), func(*args, **given))
        key = name, self._number(name)
        self.fan_ins[key] = call.fan_in
        if (call.count is not None and call.count <= self._limit(key)) or _is_transformed():
            return func(*args, **given)
        return self._run(call, key)

    def _name(self, tensor: Tensor) -> str | None:
        """The parameter that a tensor is, or is made of alone."""
        return self._parameters.get(id(tensor)) or self._made.get(id(tensor), (tensor, None))[1]

    def _limit(self, key: Key) -> int:
        return self._limits.get(key, TOKENS)

    def _number(self, name: str) -> int:
        """Of a use. A reentrant checkpoint runs once more while gradients are taken, the last one first."""
        if torch._C._current_graph_task_id() == _NO_BACKWARD:
            self._counts[name] = self._counts.get(name, 0) + 1
            return self._counts[name] - 1
        self._again[name] = self._again.get(name, 0) + 1
        return -self._again[name] % self._counts.get(name, 1)

    def _followed(self, func: Any, args: tuple[Any, ...], out: Any) -> Any:
        """What parameters and buffers make is followed, until something else is written into it."""
        names = [self._name(tensor) for tensor in tensors_in(args) if id(tensor) not in self._buffers]
        if names and names[0] and all(names):
            self._made |= {id(made): (made, names[0]) for made in tensors_in([out])}
        elif args and _writes(func):
            self._made.pop(id(args[0]), None)
        return out

    def _run(self, call: Applied, key: Key) -> Tensor:
        if torch.is_grad_enabled():
            if not call.weight.requires_grad:
                return call.result
            at_few = partial(self._at_few, key, call.positions)
            return cast(Tensor, _Learned.apply(call.inputs, call.weight, call.bias, call, at_few))  # type: ignore[no-untyped-call]
        self.here = self._chosen.get(key)
        out = call.result
        self.here = None
        return out

    def _at_few(self, key: Key, positions: tuple[int, ...], signal: Tensor) -> Tensor:
        """The gradient of a result, at the positions that count alone."""
        rows, chosen, limit = rows_of(signal, positions), self._chosen.get(key), self._limit(key)
        if len(rows) <= limit:
            return signal
        if chosen is None or chosen.of != len(rows):  # an expert's tokens may be others in another step
            sizes = rows.norm(dim=-1)
            if not bool(sizes.any()):
                return signal
            chosen = self._chosen[key] = Chosen(len(rows), sizes.topk(limit).indices)
        kept = signal.new_zeros(chosen.of).index_fill(0, chosen.rows, 1.0)
        return signal * kept.view([size if dim in positions else 1 for dim, size in enumerate(signal.shape)])


def _is_transformed() -> bool:
    """Inside of `torch.vmap` and its like, which take no function with a backward pass of its own."""
    return torch._C._functorch.maybe_current_level() is not None


def _writes(func: Any) -> bool:
    """Whether a function writes into its first argument."""
    name = getattr(func, "__name__", "")
    return name in _WRITES or (name.endswith("_") and not name.endswith("__"))


def limits_between(small: Mapping[Key, int], large: Mapping[Key, int]) -> Limits:
    """For the fan-ins at the smallest and the largest width: as many positions as are few at the smallest. Where the
    fan-in is the same at every width, so is what the others of `TOKENS` positions bring."""
    return {key: min(TOKENS, max(1, n // FEW)) for key, n in small.items() if large.get(key, n) > n}


def _inside(func: Any, args: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The same in calls that the mode sees, of a function with products inside."""
    if func is torch.einsum and len(args) > 3:
        return einsum_in_pairs
    return _opened(func) if func in _OPENED else None


@cache
def _opened(func: FunctionType) -> FunctionType:
    """A function of torch that does not hand itself over to a mode, so that the mode sees its inside."""
    never = dict.fromkeys(("has_torch_function", "has_torch_function_unary"), lambda _: False)
    inside = {**func.__globals__, **never}
    opened = FunctionType(func.__code__, inside, func.__name__, func.__defaults__, func.__closure__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened
