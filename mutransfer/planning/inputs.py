"""Inputs for the trace: the user's, the model's own, or a guess by its first layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.errors import ConfigError, MutransferError, RoleError
from mutransfer.planning.generate import generate_inputs
from mutransfer.planning.ops import Trace
from mutransfer.planning.trace import trace

Inputs = tuple[Any, ...] | dict[str, Any]
"""Positional or keyword arguments of a forward pass."""
TOKENS = 8
IMAGE_SIZES = (32, 28, 64, 224)


def find_inputs(model: nn.Module, given: Any) -> Inputs:
    """What the model is traced on.

    Args:
        model: any module.
        given: the user's example inputs (one tensor, a tuple of positional or a dict of keyword arguments), or None:
            `model.example_inputs()` if it has that, else what its config and signature ask for (ids, images, sound),
            else the first of a few guesses that its forward pass accepts.

    Raises:
        ConfigError: what is given is none of these.
        RoleError: no guess is accepted.
    """
    told = _told(model, given)
    return _tried(model)[0] if told is None else told


def find_trace(model: nn.Module, given: Any, *, build: Callable[[], nn.Module] | None = None) -> tuple[Inputs, Trace]:
    """`find_inputs`, and the model's trace on them: where they are guessed, the one that accepted them."""
    told = _told(model, given)
    return _tried(model, build) if told is None else (told, trace(model, told, build=build))


def _told(model: nn.Module, given: Any) -> Inputs | None:
    if given is not None:
        return _as_arguments(given)
    own = getattr(model, "example_inputs", None)
    return _as_arguments(own()) if callable(own) else None


def _tried(model: nn.Module, build: Callable[[], nn.Module] | None = None) -> tuple[Inputs, Trace]:
    """The first inputs that the forward pass accepts, and its trace on them."""
    seen: list[Trace] = []

    def run(inputs: Inputs) -> None:
        seen[:] = [trace(model, inputs, build=build)]

    for made in _by_config(model, run):
        return made, seen[0]
    for guess in (*_dummies(model), *_guesses(model)):
        with suppress(MutransferError):
            run(guess)
            return guess, seen[0]
    raise RoleError(
        f"No inputs for {type(model).__name__} could be guessed. Pass example_inputs=, a tuple of positional or a dict "
        "of keyword arguments that its forward pass accepts (small ones do)."
    )


def _as_arguments(given: Any) -> Inputs:
    if isinstance(given, Tensor):
        return (given,)
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, tuple | list):
        return tuple(given)
    raise ConfigError(
        f"example_inputs= is of type {type(given).__name__}. Give a tensor, a tuple of positional or a dict of keyword "
        "arguments that the model's forward pass accepts."
    )


def _by_config(model: nn.Module, run: Callable[[dict[str, Any]], object]) -> Iterator[dict[str, Any]]:
    """What a model with a config takes and was run on: all its towers' inputs, or where that fails, text alone."""
    if hasattr(getattr(model, "config", None), "to_dict"):
        for whole in (True, False):
            with suppress(RoleError):
                yield generate_inputs(model, run, whole=whole)


def _dummies(model: nn.Module) -> Iterator[dict[str, Any]]:
    """What transformers' models carry for this purpose."""
    dummies = getattr(model, "dummy_inputs", None)
    if isinstance(dummies, Mapping) and all(isinstance(value, Tensor) for value in dummies.values()):
        yield dict(dummies)


def _guesses(model: nn.Module) -> Iterator[Inputs]:
    """Token ids, images, vectors: in the order of the model's first layers."""
    ids = torch.ones(1, TOKENS, dtype=torch.long)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield (ids,)
            yield {"input_ids": ids}
        elif isinstance(module, nn.Conv2d):
            for size in IMAGE_SIZES:
                image = torch.zeros(2, module.in_channels, size, size)
                yield (image,)
                yield {"pixel_values": image}
        elif isinstance(module, nn.Conv1d):
            yield (torch.zeros(2, module.in_channels, 64),)
        elif isinstance(module, nn.Linear):
            yield (torch.zeros(TOKENS, module.in_features),)
            yield (torch.zeros(2, TOKENS, module.in_features),)
        elif isinstance(module, nn.RNNBase):
            yield (torch.zeros(TOKENS, 2, module.input_size),)
        else:
            continue
        if not isinstance(module, nn.Embedding):
            return
