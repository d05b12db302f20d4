"""The base's forward pass, on the model's inputs or on others that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mutransfer.errors import MutransferError
from mutransfer.planning.inputs import find_trace
from mutransfer.planning.ops import Trace
from mutransfer.planning.rebuild import Build
from mutransfer.planning.sizes import without_memory
from mutransfer.planning.trace import trace


@dataclass(frozen=True)
class BaseTrace:
    """A trace of the base, and the inputs that it was made on."""

    trace: Trace
    inputs: Any


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
        return BaseTrace(trace(base, inputs, build=build), inputs)
    except MutransferError:
        own, traced = find_trace(base, None, build=build)
        return BaseTrace(traced, own)
