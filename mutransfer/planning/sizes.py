"""Which sizes grow with width: every parameter's dimensions at the base, at the model, and at scaled-up probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mutransfer.errors import ShapeError, few
from mutransfer.planning.untouched import in_place

Shapes = Mapping[str, tuple[int, ...]]
ROUNDED = 6
"""A growing size may be rounded by a sixth of its growth: k(k+1), the mildest curve there is, is off by a fifth."""


@dataclass(frozen=True)
class Dim:
    """One dimension of one parameter.

    Attributes:
        base, size: at the base and at the model.
        grows: whether it follows the width.
        mixed: it grows as a*k + b with b != 0 (a latent and a rope part in one matrix, say).
    """

    base: int
    size: int
    grows: bool
    mixed: bool = False

    @property
    def ratio(self) -> float:
        return self.size / self.base if self.grows else 1.0


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape, aliases of tied parameters included."""
    _refuse_lazy(model)
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}


def _refuse_lazy(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ShapeError(
                f"{name!r} is lazy and has no size yet: run one forward pass on the model before parameterizing it."
            )


def compare(model: Shapes, base: Shapes, probes: Sequence[Shapes] = ()) -> dict[str, tuple[Dim, ...]]:
    """The dimensions of every parameter.

    Args:
        model: at the model's own size.
        base: at the base's.
        probes: at once, twice and three times some width, where the model can be rebuilt. They tell a size that grows
            from one that happens to be equal, and show a*k + b.

    Raises:
        ShapeError: different structure, or a size that differs between base and model but does not follow the width.
    """
    check_structure(model, base)
    for probe in probes:
        check_structure(model, probe)
    return {name: _dims(name, model[name], base[name], [probe[name] for probe in probes]) for name in model}


def _dims(
    name: str, model: tuple[int, ...], base: tuple[int, ...], probes: Sequence[tuple[int, ...]]
) -> tuple[Dim, ...]:
    dims = []
    for axis, (size, base_size) in enumerate(zip(model, base, strict=True)):
        points = [probe[axis] for probe in probes]
        grows = len(set(points)) > 1 if points else size != base_size
        if size != base_size and not grows:
            raise ShapeError(
                f"Dimension {axis} of {name!r} is {base_size} in the base and {size} in the model, but does not follow "
                "the width: only width may differ. Give the base the model's other sizes (vocabulary, classes, depth)."
            )
        if len(points) == 3 and not _even(points):
            raise ShapeError(
                f"Dimension {axis} of {name!r} is {points[0]}, {points[1]}, {points[2]} at once, twice and three times "
                "the width: it is not a*k + b, so no ratio describes it. Choose a width that needs no rounding."
            )
        mixed = grows and len(points) > 1 and points[1] != 2 * points[0]
        dims.append(Dim(base_size, size, grows, mixed))
    return tuple(dims)


def _even(points: Sequence[int]) -> bool:
    """Whether three sizes are a*k + b, but for rounding to multiples of a step that is small beside their growth, as
    channels are rounded: every tensor's ratio to the base is that of its own, rounded sizes."""
    off = abs(points[2] - 2 * points[1] + points[0])
    return off == 0 or (off <= math.gcd(*points) and ROUNDED * off <= points[2] - points[0])


def check_structure(model: Shapes, base: Shapes) -> None:
    """Raises ShapeError where base and model differ in their parameters' names or numbers of dimensions."""
    extra, missing = sorted(set(model) - set(base)), sorted(set(base) - set(model))
    if extra or missing:
        only = (
            f"only in the {where} [{few(list(map(repr, names)))}]"
            for where, names in (("model", extra), ("base", missing))
            if names
        )
        raise ShapeError(
            f"Base and model have different parameters: {', '.join(only)}. "
            "Build both with one constructor and change only its width."
        )
    for name, shape in model.items():
        if len(shape) != len(base[name]):
            raise ShapeError(
                f"{name!r} has {len(base[name])} dimensions in the base and {len(shape)} in the model. "
                "Build both with one constructor and change only its width."
            )


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build()` makes, on the meta device: no values, no memory, but single numbers (a scale in a buffer) kept."""
    with torch.device("meta"), in_place(), _KeepNumbers():
        return build()


class _KeepNumbers(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        number = args[0] if args else None
        if isinstance(number, list | tuple) and len(number) == 1:
            number = number[0]
        if func is torch.tensor and isinstance(number, int | float) and kwargs.get("device") is None:
            return func(*args, **{**kwargs, "device": "cpu"})
        return func(*args, **kwargs)
