"""Calls that apply a weight to an activation, however they are spelled.

`linear`, `matmul`, `bmm`, `einsum` and `tensordot` all say which dimensions the weight, the activation and the result
have in common. What the activation and the result share are positions, what the weight and the result share are
features, and what all three share are batches of matrices (experts, heads): features too, each with the same positions.
So every one of them is a product of matrices whose rows are the positions. Convolutions stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Labels = tuple[str, ...]
"""What every dimension of a tensor stands for."""

_TRANSPOSED = frozenset({F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d})
_CONVOLUTIONS = _TRANSPOSED | {F.conv1d, F.conv2d, F.conv3d}
_WITH_BIAS = ("input", "weight", "bias")
_MATMULS = frozenset({torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__})


@dataclass(frozen=True)
class Applied:
    """A call that applies a weight to an activation.

    Attributes:
        inputs, weight, bias: what it takes; without a bias, None.
        fan_in: how many entries of the weight are summed into one of the result.
        positions: the dimensions of the result that the weight does not have, in order.
        count: how many positions there are; None where only running it tells.
        run: the three -> its result.
    """

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    fan_in: int
    positions: tuple[int, ...]
    count: int | None
    run: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    @property
    def result(self) -> Tensor:
        return self.run(self.inputs, self.weight, self.bias)


def rows_of(out: Tensor, positions: Sequence[int]) -> Tensor:
    """A result as (positions, features)."""
    count = math.prod(out.shape[dim] for dim in positions)
    return out.movedim(tuple(positions), tuple(range(len(positions)))).reshape(count, -1)


def applied(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], is_weight: Callable[[Tensor], bool]
) -> Applied | None:
    """How a call applies a weight to an activation, where it does."""
    if func in _CONVOLUTIONS:
        return _convolution(func, args, kwargs, is_weight)
    spelled = _spelled(func, args, kwargs)
    if spelled is None:
        return None
    a, b, bias, product = spelled
    if not (_is_dense(a) and _is_dense(b)) or is_weight(a) == is_weight(b):
        return None
    return product.flipped.applied(b, a, bias) if is_weight(a) else product.applied(a, b, bias)


def _is_dense(factor: Any) -> bool:
    """A sparse or a nested tensor has no positions that could be told apart by their place."""
    return isinstance(factor, Tensor) and factor.layout == torch.strided


def _convolution(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], is_weight: Callable[[Tensor], bool]
) -> Applied | None:
    """Of a batch: a single example has no dimension for it."""
    named = {**dict(zip(_WITH_BIAS, args, strict=False)), **kwargs}
    inputs, weight, bias = named.pop("input"), named.pop("weight"), named.pop("bias", None)
    if inputs.ndim != weight.ndim or is_weight(inputs) or not is_weight(weight):
        return None
    positions, rest = (0, *range(2, inputs.ndim)), args[len(_WITH_BIAS) :]
    fan_in = (weight[:, 0] if func in _TRANSPOSED else weight[0]).numel()
    return Applied(inputs, weight, bias, fan_in, positions, None, lambda x, w, b: func(x, w, b, *rest, **named))


@dataclass(frozen=True)
class _Product:
    """A product of two tensors: what their dimensions and those of the result stand for."""

    left: Labels
    right: Labels
    out: Labels

    @property
    def flipped(self) -> _Product:
        return _Product(self.right, self.left, self.out)

    def applied(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Applied | None:
        """As one of matrices, the weight being the right one; None where it is no plain contraction."""
        once = all(len(set(labels)) == len(labels) for labels in (self.left, self.right, self.out))
        if not once or (len(self.left), len(self.right)) != (inputs.ndim, weight.ndim):
            return None
        x, w = _Side.of(inputs, self.left, weight, self.right), _Side.of(weight, self.right, inputs, self.left)
        contracted = tuple(label for label in x.labels if label in w.labels and label not in self.out)
        batch = tuple(label for label in self.out if label in x.labels and label in w.labels)
        rows = tuple(label for label in self.out if label not in w.labels)
        columns = tuple(label for label in self.out if label not in x.labels)
        complete = {*x.labels, *w.labels} == {*contracted, *self.out} and len(batch + rows + columns) == len(self.out)
        if not contracted or not complete or (batch and bias is not None):
            return None
        sizes, spread = {**w.sizes, **x.sizes}, (*batch, *rows, *columns)

        def run(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            matrices = x.arranged(inputs, batch, rows, contracted), w.arranged(weight, batch, contracted, columns)
            flat = torch.matmul(*matrices) if bias is None else torch.addmm(bias, *matrices)
            return flat.reshape([sizes[label] for label in spread]).permute([spread.index(label) for label in self.out])

        positions = tuple(place for place, label in enumerate(self.out) if label in rows)
        fan_in, count = (math.prod(sizes[label] for label in labels) for labels in (contracted, rows))
        return Applied(inputs, weight, bias, fan_in, positions, count, run)


@dataclass(frozen=True)
class _Side:
    """One factor, the dimensions left out along which it is one and the same for the whole other."""

    labels: Labels
    sizes: Mapping[str, int]
    repeated: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, labels: Labels, other: Tensor, of_other: Labels) -> _Side:
        sizes = dict(zip(labels, tensor.shape, strict=True))
        across = {label: other.shape[place] for place, label in enumerate(of_other)}
        is_one = {label for label in across if label in sizes and sizes[label] == 1 != across[label]}
        is_one |= {label for label, stride in zip(labels, tensor.stride(), strict=True) if not stride} & {*across}
        repeated = tuple(place for place, label in enumerate(labels) if label in is_one)
        kept = {label: size for place, (label, size) in enumerate(sizes.items()) if place not in repeated}
        return cls(tuple(kept), kept, repeated)

    def arranged(self, tensor: Tensor, *groups: Labels) -> Tensor:
        """With one dimension per group of labels; none for the batch where there is none."""
        for place in reversed(self.repeated):
            tensor = tensor.select(place, 0)
        order = [self.labels.index(label) for group in groups for label in group]
        shape = [math.prod(self.sizes[label] for label in group) for group in groups]
        return tensor.permute(order).reshape(shape if groups[0] else shape[1:])


Spelled = tuple[Any, Any, Tensor | None, _Product]


def _spelled(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Spelled | None:
    """The two factors of a call, what is added to their product, and what the call says of their dimensions."""
    if func is F.linear:
        named = {**dict(zip(_WITH_BIAS, args, strict=False)), **kwargs}
        inputs, weight = named["input"], named["weight"]
        return inputs, weight, named.get("bias"), _tensordot(inputs, weight, [-1], [-1])
    if func in _MATMULS and len(args) == 2 and not kwargs:
        return *args, None, _matmul(*(tensor.ndim for tensor in args))
    if func is torch.addmm and len(args) == 3 and not kwargs:
        return args[1], args[2], args[0], _matmul(2, 2)
    if func is torch.inner and len(args) == 2 and not kwargs:
        return *args, None, _tensordot(args[0], args[1], [-1], [-1])
    if func is torch.tensordot and len(args) == 2 and isinstance(dims := kwargs.get("dims"), int | list | tuple):
        along = (list(range(-dims, 0)), list(range(dims))) if isinstance(dims, int) else dims
        return *args, None, _tensordot(args[0], args[1], along[0], along[1])
    if func is torch.einsum and isinstance(args[0], str) and len(factors := _factors(args[1:])) == 2:
        return *factors, None, _einsum(args[0], *(t.ndim for t in factors))
    return None


def _matmul(left: int, right: int) -> _Product:
    """Of tensors with so many dimensions, those before the last two broadcast."""
    batches = [tuple(f"batch {n}" for n in reversed(range(ndim - 2))) for ndim in (left, right)]
    rows, columns = ("row",) * (left > 1), ("column",) * (right > 1)
    one, other = (*batches[0], *rows, "inner"), (*batches[1], "inner", *columns)
    return _Product(one, other, (*max(batches, key=len), *rows, *columns))


def _tensordot(left: Tensor, right: Tensor, along: Sequence[int], other: Sequence[int]) -> _Product:
    one, two = ([f"{side} {place}" for place in range(t.ndim)] for side, t in (("left", left), ("right", right)))
    inner = [one[place] for place in along]
    for place, label in zip(other, inner, strict=True):
        two[place] = label
    return _Product(tuple(one), tuple(two), tuple(label for label in (*one, *two) if label not in inner))


def einsum_in_pairs(equation: Any, *operands: Any) -> Tensor:
    """A product of more than two factors as products of two, from the left; any other call as it is."""
    factors = _factors(operands)
    if not isinstance(equation, str) or len(factors) <= 2:
        return torch.einsum(equation, *operands)
    terms, out = _terms(equation)
    first, second, *rest = terms
    needed = {*"".join(rest), *out}
    both = "".join(letter for letter in dict.fromkeys(first + second) if letter in needed)
    once = torch.einsum(_equation([first, second], both), *factors[:2])
    return einsum_in_pairs(_equation([both, *rest], out), once, *factors[2:])


def _factors(operands: Sequence[Any]) -> Sequence[Any]:
    return operands[0] if isinstance(operands[0], list | tuple) else operands


def _terms(equation: str) -> tuple[list[str], str]:
    """Of every factor, and of the result: a letter for each dimension, a dot for those of an ellipsis."""
    left, arrow, out = equation.replace(" ", "").replace("...", ".").partition("->")
    if not arrow:
        out = "." * ("." in left) + "".join(c for c in sorted({*left} - {*",."}) if left.count(c) == 1)
    return left.split(","), out


def _equation(terms: Sequence[str], out: str) -> str:
    return f"{','.join(terms)}->{out}".replace(".", "...")


def _einsum(equation: str, left: int, right: int) -> _Product:
    terms, out = _terms(equation)
    named = list(zip(terms, (left, right), strict=True))
    dots = max(ndim - len(term) + 1 if "." in term else 0 for term, ndim in named)
    one, two = (_letters(term, ndim - len(term) + 1) for term, ndim in named)
    return _Product(one, two, _letters(out, dots))


def _letters(term: str, dots: int) -> Labels:
    """With that many labels for the ellipsis, which broadcasts from the last."""
    before, dot, after = term.partition(".")
    return (*before, *(f". {place}" for place in reversed(range(dots if dot else 0))), *after)
