"""Where a tensor's entries come from: which of a parameter's own dimensions each of its strides walks along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Dims = frozenset[int]
"""Some of a parameter's own dimensions."""

Labels = tuple[Dims, ...]
"""For every dimension of a tensor, the parameter's dimensions that it stands for."""

Form = Literal["proportional", "shifted", "nonlinear"]
"""How what a storage holds depends on the parameter: times something, plus something (1 + w), or otherwise (exp(w))."""


@dataclass(frozen=True)
class Layout:
    """How a storage that holds a parameter's entries is laid out: (stride, size, the parameter's dimensions)."""

    parameter: str
    axes: tuple[tuple[int, int, Dims], ...]
    form: Form = "proportional"

    @classmethod
    def of(cls, parameter: str, tensor: Tensor, labels: Sequence[Dims], form: Form = "proportional") -> Layout:
        """The layout of the storage that `tensor` alone fills."""
        return cls(parameter, tuple(zip(tensor.stride(), tensor.shape, labels, strict=True)), form)

    @classmethod
    def whole(cls, parameter: str, tensor: Tensor) -> Layout:
        """The layout of a parameter itself."""
        return cls.of(parameter, tensor, [frozenset({axis}) for axis in range(tensor.ndim)])

    def label(self, tensor: Tensor) -> Labels:
        """What each dimension of a view of the storage stands for."""
        return tuple(self._covered(s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True))

    def _covered(self, stride: int, size: int) -> Dims:
        """The dimensions that a step of `stride`, taken `size` times, walks along."""
        if size <= 1 or stride == 0:
            return frozenset()
        spans = (dims for s, n, dims in self.axes if n > 1 and s < stride * size and stride < s * n)
        return frozenset().union(*spans)


def union(labels: Labels, axes: Sequence[int]) -> Dims:
    """What some of a tensor's dimensions stand for together."""
    return frozenset().union(*(labels[axis] for axis in axes))


def broadcast(labels: Labels, ndim: int) -> Labels:
    """The labels of a tensor that is broadcast to `ndim` dimensions: missing ones come first."""
    return (*([frozenset()] * (ndim - len(labels))), *labels)
