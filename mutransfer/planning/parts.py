"""Parts of a model that its inputs do not reach (a vision tower, given text alone) are traced by themselves."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Collection, Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from mutransfer.errors import MutransferError
from mutransfer.planning.inputs import TOKENS, find_trace
from mutransfer.planning.layers import with_declared_uses
from mutransfer.planning.ops import Trace, Use
from mutransfer.planning.trace import trace as trace_of

MOST_SIZES = 4
"""Of hidden states, that are tried."""


def with_uses_of_parts(trace: Trace, model: nn.Module) -> Trace:
    """The trace, and for parameters that it did not see what their layer would do, or what a part of the model that
    holds them does when it is run alone, on inputs that are guessed: the largest part that runs and uses them. One of
    each class is tried, for what it shows holds for the others."""
    trace = with_declared_uses(trace, model)
    tried: set[object] = {nn.ModuleList, nn.ModuleDict}
    for name in trace.uses:
        for path in () if trace.uses[name] else _around(name, _reached(trace)):
            kind = _kind(model, path)
            if kind not in tried and not trace.uses[name]:
                tried.add(kind)
                trace = with_declared_uses(_with_part(trace, model, path), model)
    return trace


def _kind(model: nn.Module, path: str) -> object:
    """The class of a module; a sequence of others is of its own kind."""
    module = model.get_submodule(path)
    return path if isinstance(module, nn.Sequential) else type(module)


def _reached(trace: Trace) -> list[str]:
    return [name for name, uses in trace.uses.items() if any(use.reached for use in uses)]


def _around(name: str, reached: Collection[str]) -> Iterator[str]:
    """The modules that hold a parameter and none that is reached, the outermost first."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        path = ".".join(parts[:end])
        if not any(other.startswith(f"{path}.") for other in reached):
            yield path


def _with_part(trace: Trace, model: nn.Module, path: str) -> Trace:
    """The trace, with what one module does with its own parameters; as it was, where no inputs for it are found."""
    alone = _alone(model.get_submodule(path))
    if alone is None:
        return trace
    uses = dict(trace.uses)
    for local, found in alone.uses.items():
        name = f"{path}.{local}"
        if found and not any(use.reached for use in uses.get(name, found)):  # more than what its layer declares
            uses[name] = tuple(_elsewhere(use, path) for use in found)
    normalized = trace.normalized | {f"{path}.{local}" for local in alone.normalized}
    return dataclasses.replace(trace, uses=uses, normalized=normalized)


def _alone(part: nn.Module) -> Trace | None:
    """The part's trace on inputs that are guessed: by its config or its first layers, or else hidden states, of every
    size that its parameters have, for all that it requires."""
    with suppress(MutransferError):
        return find_trace(part, None)[1]
    for states in _hidden_states(part):
        with suppress(MutransferError):
            return trace_of(part, states)
    return None


def _hidden_states(part: nn.Module) -> Iterator[dict[str, Tensor]]:
    parameters = inspect.signature(part.forward).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    sizes = dict.fromkeys(p.shape[-1] for p in part.parameters() if p.ndim > 0)
    for size, shape in itertools.product(list(sizes)[:MOST_SIZES], ((2, TOKENS), (TOKENS,))):
        mask, states = torch.ones(shape), torch.zeros(*shape, size)
        yield {name: mask if name.endswith("mask") else states for name in required}


def _elsewhere(use: Use, path: str) -> Use:
    """A use by an op of another trace: its number, which pairs the two factors of a product, is none of this one's."""
    partner = f"{path}.{use.partner}" if use.partner else ""
    return dataclasses.replace(
        use, op=-2 - use.op, module=f"{path}.{use.module}".removesuffix("."), partner=partner, reached=False
    )
