"""The model's forward pass, and the base's on the same inputs or on others that it takes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn

from mutransfer.errors import MutransferError, RoleError, ShapeError
from mutransfer.planning.graph import without_choices
from mutransfer.planning.inputs import find_trace
from mutransfer.planning.ops import Trace
from mutransfer.planning.rebuild import Build
from mutransfer.planning.sizes import without_memory
from mutransfer.planning.trace import in_a_line, trace


@dataclass(frozen=True)
class BaseTrace:
    """A trace of the base, the inputs that it was made on, and the base itself, without memory."""

    trace: Trace
    inputs: Any
    model: nn.Module


def trace_model(model: nn.Module, inputs: Any, build: Build | None) -> tuple[Any, Trace]:
    """The model's inputs and its trace on them.

    Args:
        inputs: as given; None for a guess.
        build: makes the base, where that can be made.

    Raises:
        RoleError: the forward pass fails on these inputs, or no guess is accepted.
        ShapeError: it fails, and the base's runs on the same inputs: the model was not made wider in all its sizes.
    """
    try:
        taken, found = find_trace(model, inputs)
        return taken, without_choices(found)
    except RoleError as error:
        if inputs is None or build is None or not _runs(build, inputs):
            raise
        raise ShapeError(
            f"The model's forward pass fails ({in_a_line(error.__cause__)}), though the base's runs on the same inputs:"
            " a size in its config or in its code does not follow the width. Give base= as a dict of all config fields "
            "that grow together, or a factory= that sets them all."
        ) from error


def _runs(build: Build, inputs: Any) -> bool:
    with suppress(MutransferError):
        find_trace(without_memory(build), inputs, build=build)
        return True
    return False


def trace_base(build: Build, inputs: Any, *, evaluated: bool) -> BaseTrace:
    """Traces what `build` makes, without memory.

    Args:
        inputs: of the model; where the base does not take them, some are guessed.
        evaluated: in evaluation mode.

    Raises:
        RoleError: it takes neither.
    """
    base = without_memory(build)
    if evaluated:
        base.eval()
    try:
        return BaseTrace(trace(base, inputs, build=build), inputs, base)
    except MutransferError:
        own, traced = find_trace(base, None, build=build)
        return BaseTrace(traced, own, base)
