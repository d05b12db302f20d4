"""What a parameter that the traced forward pass does not reach would do, by the module that owns it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from mutransfer.planning.layout import Dims
from mutransfer.planning.ops import Trace, Use

_CONTRACTED: Mapping[Any, Dims] = {
    nn.Linear.forward: frozenset({1}),
    nn.Conv1d.forward: frozenset({1, 2}),
    nn.Conv2d.forward: frozenset({1, 2, 3}),
    nn.Conv3d.forward: frozenset({1, 2, 3, 4}),
}
"""Forward pass -> the dimensions of the weight that it sums over."""
_TRANSPOSED: Mapping[Any, Dims] = {
    nn.ConvTranspose1d.forward: frozenset({0, 2}),
    nn.ConvTranspose2d.forward: frozenset({0, 2, 3}),
    nn.ConvTranspose3d.forward: frozenset({0, 2, 3, 4}),
}
"""The same of weights that are laid out (in, out, taps)."""
_LOOKED_UP = (nn.Embedding.forward, nn.EmbeddingBag.forward)
_MATRICES: Mapping[Any, tuple[str, ...]] = {
    nn.MultiheadAttention.forward: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    **dict.fromkeys((nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward), ("weight_ih", "weight_hh", "weight_hr")),
    **dict.fromkeys((nn.RNNCell.forward, nn.LSTMCell.forward, nn.GRUCell.forward), ("weight_ih", "weight_hh")),
}
"""Forward pass -> how the names of the matrices begin that it multiplies as a Linear does."""
_HOLDERS = (ParametrizationList, nn.ParameterList, nn.ParameterDict)
"""They hold what other modules use, each in its own way."""


def with_declared_uses(trace: Trace, model: nn.Module) -> Trace:
    """The trace, and for parameters that it did not see (a pooler or a mask token that this input does not need) what
    the module that owns them would do: what torch's own layers do with their weights is known, and any other module
    does what another one of its class was seen to do with the parameter of that name."""
    uses = dict(trace.uses)
    seen = dict(_seen(trace, model))
    normalized = set(trace.normalized)
    for name, found in trace.uses.items():
        if not found:
            owner = _owner(model, name)
            use = _declared(owner)
            uses[name] = (use,) if use else seen.get(owner.key, ())
            normalized |= {name} if owner.reparametrized else set()
    return dataclasses.replace(trace, uses=uses, normalized=frozenset(normalized))


@dataclass(frozen=True)
class _Owner:
    """The layer that a parameter belongs to, what it is called there, and its shape."""

    module: nn.Module
    local: str
    shape: torch.Size
    reparametrized: bool = False

    @property
    def key(self) -> tuple[type[nn.Module], str, int]:
        return type(self.module), self.local, len(self.shape)


def _owner(model: nn.Module, name: str) -> _Owner:
    """A reparametrized weight (weight_norm) is held by a list below its layer: the part of it that has the weight's
    shape stands for it."""
    path, _, local = name.rpartition(".")
    module = model.get_submodule(path)
    shape = getattr(module, local).shape
    if isinstance(module, ParametrizationList) and shape[1:].numel() > 1:
        layer, _, local = path.rpartition("parametrizations.")
        return _Owner(model.get_submodule(layer.removesuffix(".")), local, shape, reparametrized=True)
    return _Owner(module, local, shape)


def _seen(trace: Trace, model: nn.Module) -> Iterator[tuple[Any, tuple[Use, ...]]]:
    """What was seen to be done with a parameter of a class of modules that have a forward pass of their own. Nothing
    that a product of two parameters takes part in: the other one belongs to that one module."""
    for name, uses in trace.uses.items():
        owner = _owner(model, name)
        if uses and not any(use.partner for use in uses) and not isinstance(owner.module, _HOLDERS):
            yield owner.key, tuple(dataclasses.replace(use, op=-1, module="", reached=False) for use in uses)


def _declared(owner: _Owner) -> Use | None:
    module, local = owner.module, owner.local
    forward = type(module).forward
    if local == "weight" and forward in _LOOKED_UP:
        return Use("lookup", reached=False)
    if local == "weight" and forward in (*_CONTRACTED, *_TRANSPOSED) and (contracted := _kernel(module)):
        batch = frozenset({0}) if getattr(module, "groups", 1) > 1 else frozenset()
        return Use("contraction", contracted, batch, reached=False)
    if len(owner.shape) == 2 and any(local.startswith(name) for name in _MATRICES.get(forward, ())):
        return Use("contraction", frozenset({1}), reached=False)
    if sum(size > 1 for size in owner.shape) <= 1:
        return Use("elementwise", additive=True, reached=False)  # one number a channel: a bias, a gain, a mask token
    return None


def _kernel(module: Any) -> Dims:
    """What a layer's weight is summed over; nothing where groups of channels of a transposed convolution share it."""
    forward = type(module).forward
    groups = getattr(module, "groups", 1)
    if forward in _CONTRACTED:
        return _CONTRACTED[forward]
    if groups in (1, module.in_channels):
        return _TRANSPOSED[forward] - ({0} if groups > 1 else set())
    return frozenset()
