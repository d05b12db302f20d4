"""What torch's own layers do with their parameters, for those that the traced forward pass does not reach."""

from __future__ import annotations

import dataclasses

from torch import nn

from mutransfer.planning.ops import Trace, Use

_CONTRACTED = {
    nn.Linear.forward: (1,),
    nn.Conv1d.forward: (1, 2),
    nn.Conv2d.forward: (1, 2, 3),
    nn.Conv3d.forward: (1, 2, 3, 4),
}
"""Forward pass -> the dimensions of the weight that it sums over."""


def with_declared_uses(trace: Trace, model: nn.Module) -> Trace:
    """The trace, and for parameters that it did not see (a pooler or a mask token that this input does not need) what
    the layer that owns them would do: what a Linear, a convolution, an Embedding does with its weight is known."""
    uses = dict(trace.uses)
    for name, seen in trace.uses.items():
        if not seen:
            path, _, local = name.rpartition(".")
            use = _declared(model.get_submodule(path), local)
            uses[name] = (use,) if use else ()
    return dataclasses.replace(trace, uses=uses)


def _declared(module: nn.Module, local: str) -> Use | None:
    forward = type(module).forward
    if local == "weight" and forward is nn.Embedding.forward:
        return Use("lookup", reached=False)
    if local == "weight" and forward in _CONTRACTED:
        grouped = getattr(module, "groups", 1) > 1
        batch = frozenset({0}) if grouped else frozenset()
        return Use("contraction", frozenset(_CONTRACTED[forward]), batch, reached=False)
    parameter = getattr(module, local)
    if sum(size > 1 for size in parameter.shape) <= 1:
        return Use("elementwise", additive=True, reached=False)  # one number a channel: a bias, a gain, a mask token
    return None
