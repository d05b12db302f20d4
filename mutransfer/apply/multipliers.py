"""Multipliers in the forward pass: a module is given a subclass of its own class, and a number.

Parameters, buffers, state_dict keys and hooks stay as they were; deepcopy, pickle and torch.compile work, since the
number is a plain attribute and the class is found again by name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mutransfer.planning.carriers import scaled
from mutransfer.planning.data import AttentionPlan, Rows, SwapPlan

PLAIN_SCALES = "_mutransfer_scales"
"""Attribute on a module whose softmax scale was set: attribute -> the value that its own class gave it."""

_NONE = {"_mutransfer_parameters": None, "_mutransfer_rows": None, "_mutransfer_weight": 1.0, "_mutransfer_output": 1.0}


class Scaled:
    """Mixin: `_mutransfer_parameters` scale parameters where they are read, `_mutransfer_rows` some of their rows,
    `_mutransfer_weight` the layer's weight, `_mutransfer_output` all that a layer of no known kind returns."""

    _mutransfer_parameters: dict[str, float]
    _mutransfer_rows: dict[str, tuple[tuple[Rows, float], ...]]
    _mutransfer_weight: float
    _mutransfer_output: float

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)  # type: ignore[misc]
        factor = self.__dict__["_mutransfer_parameters"].get(name)
        parts = self.__dict__["_mutransfer_rows"].get(name, ())
        if (factor is None and not parts) or _is_sharding():
            return value
        value = value if factor is None else value * factor
        for rows, factor in parts:
            value = scaled(value, rows, factor)
        return value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (type(self).plain,), self.__dict__  # type: ignore[attr-defined]


class ScaledOutput(Scaled):
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = type(self).plain.forward(self, *args, **kwargs)
        return _times(out, self._mutransfer_output)


class ScaledLinear(Scaled):
    """y = multiplier * W x + b; the smaller side is scaled."""

    def forward(self: Any, input: Tensor) -> Tensor:
        if self.in_features <= self.out_features or self._mutransfer_weight == 1.0:
            whole: Tensor = functional.linear(_times(input, self._mutransfer_weight), self.weight, self.bias)
            return whole
        out: Tensor = functional.linear(input, self.weight) * self._mutransfer_weight
        return out if self.bias is None else out + self.bias


class ScaledEmbedding(Scaled):
    def forward(self: Any, input: Tensor) -> Tensor:
        rows: Tensor = _times(nn.Embedding.forward(self, input), self._mutransfer_weight)
        return rows


class ScaledConv(Scaled):
    def forward(self: Any, input: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(_times(input, self._mutransfer_weight), self.weight, self.bias)
        return out


def _is_sharding() -> bool:
    """Whether torch's sharding asks for the parameter: it would take what it gets for the parameter itself."""
    if torch.compiler.is_compiling():
        return False
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return str(caller).startswith("torch.distributed.fsdp")


def _times(value: Any, factor: float) -> Any:
    return value if factor == 1.0 else value * factor


def scaled_class(plain: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a module class that applies multipliers; one for each, so that types compare."""
    if plain not in _CLASSES:
        _CLASSES[plain] = _make(plain)
    return _CLASSES[plain]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _make(plain: type[nn.Module]) -> type[nn.Module]:
    return type(f"Scaled{plain.__name__}", (_mixin(plain), plain), {"__module__": plain.__module__, "plain": plain})


def _mixin(plain: type[nn.Module]) -> type[Scaled]:
    if plain.forward is nn.Linear.forward:
        return ScaledLinear
    if plain.forward is nn.Embedding.forward:
        return ScaledEmbedding
    if plain.forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward):
        return ScaledConv
    return ScaledOutput


def _blank(plain: type[nn.Module]) -> nn.Module:
    return scaled_class(plain).__new__(scaled_class(plain))


def apply_swaps(model: nn.Module, swaps: Iterable[SwapPlan]) -> None:
    """Gives every planned module its scaled class and its numbers."""
    for swap in swaps:
        module = model.get_submodule(swap.module)
        if not isinstance(module, Scaled):
            module.__class__ = scaled_class(type(module))
            module.__dict__.update({**_NONE, "_mutransfer_parameters": {}, "_mutransfer_rows": {}})
        if swap.side == "module":
            module.__dict__["_mutransfer_weight"] = swap.multiplier
        elif swap.side == "output":
            module.__dict__["_mutransfer_output"] = swap.multiplier
        elif swap.rows is not None:
            rows = module.__dict__["_mutransfer_rows"]
            rows[swap.parameter] = (*rows.get(swap.parameter, ()), (swap.rows, swap.multiplier))
        else:
            module.__dict__["_mutransfer_parameters"][swap.parameter] = swap.multiplier


def make_plain(module: Any) -> None:
    """The module's own class again, without its numbers."""
    module.__class__ = type(module).plain
    for attribute in _NONE:
        del module.__dict__[attribute]


def apply_attention(model: nn.Module, attention: Iterable[AttentionPlan]) -> None:
    """Sets the planned softmax scales, and notes what they were."""
    for site in attention:
        module = model.get_submodule(site.module)
        module.__dict__.setdefault(PLAIN_SCALES, {})[site.attribute] = getattr(module, site.attribute)
        setattr(module, site.attribute, site.value)
