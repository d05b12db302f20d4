"""Parts of a model that its inputs do not reach (a vision tower, given text alone) are traced by themselves."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.errors import MutransferError
from mutransfer.planning.inputs import TOKENS, Inputs, find_trace
from mutransfer.planning.layers import with_declared_uses
from mutransfer.planning.ops import Trace, Use
from mutransfer.planning.rebuild import Build
from mutransfer.planning.trace import evaluating
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
        for path in () if trace.uses[name] else around(name, reached_by(trace)):
            kind = _kind(model, path)
            if kind not in tried and not trace.uses[name]:
                tried.add(kind)
                trace = with_declared_uses(_with_part(trace, model, path), model)
    return trace


def _kind(model: nn.Module, path: str) -> object:
    """The class of a module; a sequence of others is of its own kind."""
    module = model.get_submodule(path)
    return path if isinstance(module, nn.Sequential) else type(module)


def reached_by(trace: Trace) -> list[str]:
    """The parameters that the inputs of a trace reach."""
    return [name for name, uses in trace.uses.items() if any(use.reached for use in uses)]


def around(name: str, reached: Collection[str]) -> Iterator[str]:
    """The modules that hold a parameter and none that is reached, the outermost first."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        path = ".".join(parts[:end])
        if not any(other.startswith(f"{path}.") for other in reached):
            yield path


def _with_part(trace: Trace, model: nn.Module, path: str) -> Trace:
    """The trace, with what one module does with its own parameters; as it was, where no inputs for it are found."""
    ran = _run_alone(model.get_submodule(path))
    if ran is None:
        return trace
    _, alone = ran
    uses = dict(trace.uses)
    for local, found in alone.uses.items():
        name = f"{path}.{local}"
        if found and not any(use.reached for use in uses.get(name, found)):  # more than what its layer declares
            uses[name] = tuple(_elsewhere(use, path) for use in found)
    normalized = trace.normalized | {f"{path}.{local}" for local in alone.normalized}
    return dataclasses.replace(trace, uses=uses, normalized=normalized)


def _run_alone(part: nn.Module, build: Build | None = None) -> tuple[Inputs, Trace] | None:
    """A part on inputs that are guessed, and its trace: by its config or its first layers, or else hidden states, of
    every size that its parameters have, for all that it requires. `build` makes it with values."""
    with suppress(MutransferError):
        return find_trace(part, None, build=build)
    for states in _hidden_states(part):
        with suppress(MutransferError):
            return states, trace_of(part, states, build=build)
    return None


def _hidden_states(part: nn.Module) -> Iterator[dict[str, Any]]:
    parameters = inspect.signature(part.forward).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    listed = {p.name for p in parameters if str(p.annotation).lower().startswith("list[")}
    sizes = dict.fromkeys(p.shape[-1] for p in part.parameters() if p.ndim > 0)
    for size, shape in itertools.product(list(sizes)[:MOST_SIZES], ((2, TOKENS), (TOKENS,))):
        positions, states = torch.arange(TOKENS).expand(shape), torch.zeros(*shape, size)
        # a mask that is a list holds the positions that are kept, block by block
        masks: dict[str, Any] = {name: [positions] if name in listed else torch.ones(shape) for name in required}
        yield {name: masks[name] if name.endswith("mask") else states for name in required}


def _elsewhere(use: Use, path: str) -> Use:
    """A use by an op of another trace: its number, which pairs the two factors of a product, is none of this one's."""
    partner = f"{path}.{use.partner}" if use.partner else ""
    return dataclasses.replace(
        use, op=-2 - use.op, module=f"{path}.{use.module}".removesuffix("."), partner=partner, reached=False
    )


class Alone(nn.Module):
    """A part of a model, to be run by itself: its parameters and modules have the names that they have in the whole.

    Args:
        model: the whole; it is left as it is.
        path: of the part.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        super().__init__()
        self.path = path
        holder: nn.Module = self
        *outer, last = path.split(".")
        for name in outer:
            holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        holder.add_module(last, model.get_submodule(path))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule(self.path)(*args, **kwargs)


def trace_alone(part: Alone, build: Build | None = None, inputs: Inputs | None = None) -> tuple[Inputs, Trace] | None:
    """What a part is run on in evaluation mode, and its trace, with what its layers declare for parameters that it does
    not reach; None where no inputs are found that it takes.

    Args:
        build: makes the whole with values, for a part that is on meta.
        inputs: tried before any guess.
    """
    with evaluating(part, evaluate=True):
        for taken in _inputs_of(part, build, inputs):
            with suppress(MutransferError):
                found = trace_of(part, taken, build=None if build is None else lambda: Alone(build(), part.path))
                return taken, with_declared_uses(found, part)
    return None


def _inputs_of(part: Alone, build: Build | None, inputs: Inputs | None) -> Iterator[Inputs]:
    if inputs is not None:
        yield inputs
    valued = None if build is None else lambda: build().get_submodule(part.path)
    ran = _run_alone(part.get_submodule(part.path), valued)
    if ran is not None:
        yield _drawn(ran[0])


def _drawn(inputs: Any) -> Any:
    """With numbers in the place of zeros, from which nothing could be proven."""
    if isinstance(inputs, Mapping):
        return {name: _drawn(value) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return type(inputs)(map(_drawn, inputs))
    if isinstance(inputs, Tensor) and inputs.is_floating_point() and not inputs.any():
        return torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0), dtype=inputs.dtype)
    return inputs
