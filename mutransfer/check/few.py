"""Few positions for a weight, however many a batch has.

A weight that is applied to N vectors x_j moves by the sum over them of g_j x_j^T. Applied to x_i, that is |x_i|^2 g_i,
which grows as its fan-in n, and a sum over the others, which grows as sqrt(N n): the law is that of n far larger than
N. Images, sound and long sequences have thousands of positions. So a weight learns from the few that have the largest
gradients, and its contribution is measured at these; what it passes back to its input comes from all of them. That
holds of linear and convolutional layers and of matrix products, also where a weight is made of parameters and buffers;
`einsum`, products of batches of matrices, recurrent layers and the inside of `nn.MultiheadAttention` learn from all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from mutransfer.planning.calls import tensors_in

TOKENS = 8
"""Positions per step: far fewer than the smallest width, since the tables assume full alignment."""

_CONVOLUTIONS = frozenset({F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d})
_WITH_BIAS = ("input", "weight", "bias")
_PRODUCTS = frozenset({torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__})
_WRITES = frozenset({"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"})

Key = tuple[str, int]
"""A parameter's name and the number of the product that it is in, in execution order."""


@dataclass(frozen=True)
class Chosen:
    """The positions that count.

    Attributes:
        of: how many there are.
        rows: which of them count, in the order in which they lie in memory once the features come last.
    """

    of: int
    rows: Tensor


@dataclass(frozen=True)
class _Product:
    """A call that applies a weight to an activation.

    Attributes:
        inputs, weight, bias: what it takes; without a bias, None.
        across: the dimension of the result that holds the weight's outputs.
        call: the three -> its result.
    """

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    across: int
    call: Callable[..., Tensor]

    @property
    def result(self) -> Tensor:
        return self.call(self.inputs, self.weight, self.bias)

    @property
    def has_few_positions(self) -> bool:
        """Known without running it where every vector of the input makes one of the result."""
        return self.across == -1 and self.inputs.numel() <= TOKENS * self.inputs.shape[-1]


class _Learned(torch.autograd.Function):
    """A product whose weight has the gradient of another signal than its inputs and its bias have."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        product: _Product,
        at_few: Callable[[Tensor], Tensor],
    ) -> Tensor:
        leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in (inputs, weight, bias)]
        with torch.enable_grad():
            ctx.out = product.call(*leaves)
        ctx.leaves, ctx.at_few = leaves, at_few
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

    Attributes:
        here: the positions that count in the product that runs; None where all do.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.here: Chosen | None = None
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._chosen: dict[Key, Chosen] = {}
        self._counts: dict[str, int] = {}
        self._buffers = {id(buffer) for buffer in model.buffers()}
        self._made: dict[int, tuple[Tensor, str]] = {}  # from parameters alone; kept, for they are told by address

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._counts.clear()
        return self

    def __exit__(self, *error: object) -> None:
        self._made.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        product = _product(func, args, given)
        name = self._name(product.weight) if product and not self._name(product.inputs) else None
        if product is None or name is None:
            return self._followed(func, (*args, *given.values()), func(*args, **given))
        self._counts[name] = number = self._counts.get(name, -1) + 1
        return self._run(product, (name, number))

    def _name(self, tensor: Tensor) -> str | None:
        """The parameter that a tensor is, or is made of alone."""
        return self._parameters.get(id(tensor)) or self._made.get(id(tensor), (tensor, None))[1]

    def _followed(self, func: Any, args: tuple[Any, ...], out: Any) -> Any:
        """What parameters and buffers make is followed, until something else is written into it."""
        names = [self._name(tensor) for tensor in tensors_in(args) if id(tensor) not in self._buffers]
        if names and names[0] and all(names) and isinstance(out, Tensor):
            self._made[id(out)] = out, names[0]
        elif args and _writes(func):
            self._made.pop(id(args[0]), None)
        return out

    def _run(self, product: _Product, key: Key) -> Tensor:
        if torch.is_grad_enabled():
            if not product.weight.requires_grad or product.has_few_positions:
                return product.result
            tensors = product.inputs, product.weight, product.bias
            return cast(Tensor, _Learned.apply(*tensors, product, partial(self._at_few, key, product.across)))  # type: ignore[no-untyped-call]
        self.here = self._chosen.get(key)
        out = product.result
        self.here = None
        return out

    def _at_few(self, key: Key, across: int, signal: Tensor) -> Tensor:
        """The gradient of a result, at the positions that count alone."""
        rows, chosen = rows_of(signal, across), self._chosen.get(key)
        if len(rows) <= TOKENS:
            return signal
        if chosen is None or chosen.of != len(rows):  # an expert's tokens may be others in another step
            sizes = rows.norm(dim=-1)
            if not bool(sizes.any()):
                return signal
            chosen = self._chosen[key] = Chosen(len(rows), sizes.topk(TOKENS).indices)
        kept = signal.new_zeros(chosen.of).index_fill(0, chosen.rows, 1.0)
        return signal * kept.view(signal.movedim(across, -1).shape[:-1]).unsqueeze(across)


def _writes(func: Any) -> bool:
    """Whether a function writes into its first argument."""
    name = getattr(func, "__name__", "")
    return name in _WRITES or (name.endswith("_") and not name.endswith("__"))


def rows_of(out: Tensor, across: int) -> Tensor:
    """A result as (positions, features)."""
    return out.movedim(across, -1).flatten(0, -2)


def _product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Product | None:
    """How a call is one of a weight and an activation, as (..., features) or (batch, channels, ...); else None."""
    if func in _PRODUCTS and len(args) == 2 and not kwargs:
        return _checked(_Product(*args, None, -1, lambda inputs, weight, _: func(inputs, weight)))
    if func is torch.addmm and len(args) == 3 and not kwargs:
        return _checked(_Product(*args[1:], args[0], -1, lambda inputs, weight, bias: func(bias, inputs, weight)))
    if func is not F.linear and func not in _CONVOLUTIONS:
        return None
    named = dict(zip(_WITH_BIAS, args, strict=False)) | kwargs
    inputs, weight, bias = named.pop("input"), named.pop("weight"), named.pop("bias", None)
    rest, across = args[len(_WITH_BIAS) :], 1 if func in _CONVOLUTIONS else -1
    return _checked(_Product(inputs, weight, bias, across, lambda *tensors: func(*tensors, *rest, **named)))


def _checked(product: _Product) -> _Product | None:
    """Those of one weight with a batch: not one matrix each, and no convolution of a single example."""
    inputs, weight = product.inputs, product.weight
    if not (isinstance(inputs, Tensor) and isinstance(weight, Tensor)):
        return None
    fitting = inputs.ndim == weight.ndim if product.across == 1 else weight.ndim == 2 <= inputs.ndim
    return product if fitting else None
