"""Few positions for every weight, however many a batch has.

A weight that is applied to N vectors x_j moves by the sum over them of g_j x_j^T. Applied to x_i, that is |x_i|^2 g_i,
which grows as its fan-in n, and a sum over the others, which grows as sqrt(N n): the law is that of n far larger than
N. Images, sound and long sequences have thousands of positions. So a weight learns from the few that have the largest
gradients, and its contribution is measured at these; what it passes back to its input comes from all of them. Weights
that meet the data itself are left alone, for their fan-in is one number at all widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TOKENS = 8
"""Positions per step: far fewer than the smallest width, since the tables assume full alignment."""

_CONVOLUTIONS = frozenset({F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d})
_WITH_BIAS = ("input", "weight", "bias")
_PRODUCTS = frozenset({torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__})

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
        inputs, weight: the two.
        across: the dimension of the result that holds the weight's outputs.
        whole: weight -> the call's result with it.
        alone: inputs, weight -> their product, without what is added to it.
    """

    inputs: Tensor
    weight: Tensor
    across: int
    whole: Callable[[Tensor], Tensor]
    alone: Callable[[Tensor, Tensor], Tensor]

    @property
    def has_few_inputs(self) -> bool:
        """Known without running it where every vector of the input makes one of the result."""
        return self.across == -1 and self.inputs.numel() <= TOKENS * self.inputs.shape[-1]


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
            return self._followed(args, func(*args, **given))
        self._counts[name] = number = self._counts.get(name, -1) + 1
        return self._run(product, (name, number))

    def _name(self, tensor: Tensor) -> str | None:
        """The parameter that a tensor is, or is made of alone."""
        return self._parameters.get(id(tensor)) or self._made.get(id(tensor), (tensor, None))[1]

    def _followed(self, args: tuple[Any, ...], out: Any) -> Any:
        names = [self._name(arg) for arg in args if isinstance(arg, Tensor)]
        if names and names[0] and all(names) and isinstance(out, Tensor):
            self._made[id(out)] = out, names[0]
        return out

    def _run(self, product: _Product, key: Key) -> Tensor:
        if torch.is_grad_enabled():
            return self._learning(product, key)
        self.here = self._chosen.get(key)
        out = product.whole(product.weight)
        self.here = None
        return out

    def _learning(self, product: _Product, key: Key) -> Tensor:
        """The call's result, to the last bit: the weight's gradient comes by way of a difference that is zero."""
        learned = product.inputs.requires_grad and product.weight.requires_grad
        if not learned or product.has_few_inputs:
            return product.whole(product.weight)
        out = product.whole(product.weight.detach())
        if out.numel() // max(out.shape[product.across], 1) <= TOKENS:
            return product.whole(product.weight)
        own = product.alone(product.inputs.detach(), product.weight)
        own.register_hook(partial(self._at_few, key, product.across))
        return out + (own - own.detach())

    def _at_few(self, key: Key, across: int, gradient: Tensor) -> Tensor:
        if key not in self._chosen:
            sizes = rows_of(gradient, across).norm(dim=-1)
            self._chosen[key] = Chosen(len(sizes), sizes.topk(TOKENS).indices)
        chosen = self._chosen[key]
        kept = gradient.new_zeros(chosen.of).index_fill(0, chosen.rows, 1.0)
        return gradient * kept.view(gradient.movedim(across, -1).shape[:-1]).unsqueeze(across)


def rows_of(out: Tensor, across: int) -> Tensor:
    """A result as (positions, features)."""
    return out.movedim(across, -1).flatten(0, -2)


def _product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Product | None:
    """How a call is one of a weight and an activation, as (..., features) or (batch, channels, ...); else None."""
    if func in _PRODUCTS and len(args) == 2 and not kwargs:
        return _checked(_Product(*args, -1, lambda weight: func(args[0], weight), func))
    if func is torch.addmm and len(args) == 3 and not kwargs:
        return _checked(_Product(*args[1:], -1, lambda weight: func(*args[:2], weight), torch.mm))
    if func is not F.linear and func not in _CONVOLUTIONS:
        return None
    named = dict(zip(_WITH_BIAS, args, strict=False)) | kwargs
    inputs, weight, bias = named.pop("input"), named.pop("weight"), named.pop("bias", None)
    rest = args[len(_WITH_BIAS) :]
    return _checked(
        _Product(
            inputs,
            weight,
            1 if func in _CONVOLUTIONS else -1,
            lambda weight: func(inputs, weight, bias, *rest, **named),
            lambda inputs, weight: func(inputs, weight, None, *rest, **named),
        )
    )


def _checked(product: _Product) -> _Product | None:
    """Those of one weight with a batch: not one matrix each, and no convolution of a single example."""
    inputs, weight = product.inputs, product.weight
    if not (isinstance(inputs, Tensor) and isinstance(weight, Tensor)):
        return None
    fitting = inputs.ndim == weight.ndim if product.across == 1 else weight.ndim == 2 <= inputs.ndim
    return product if fitting else None
