"""Modules that return a residual branch: where its multiplier goes when no parameter of it can hold one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mutransfer.planning.branches import Branch
from mutransfer.planning.ops import VIEWS, Trace
from mutransfer.planning.verify import verify_outputs

_LAYERS = {layer.forward for layer in (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
"""What these return is not multiplied: their weight is."""


def output_modules(trace: Trace, branch: Branch) -> tuple[str, ...]:
    """Modules inside the one that adds whose result may be what is added, the outermost first.

    Dropout and changes of shape on the way commute with a factor.
    """
    add = trace.ops[branch.op]
    op = trace.producer(add.inputs[branch.operand])
    while op is not None and op.module == add.module and op.name in VIEWS:
        op = trace.producer(op.inputs[0])
    parts = [] if op is None else op.module.split(".")
    paths = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return tuple(path for path in paths if path != add.module and path.startswith(f"{add.module}." * bool(add.module)))


def find_outputs(
    model: nn.Module, inputs: Sequence[Any] | Mapping[str, Any], trace: Trace, branches: Sequence[Branch]
) -> dict[int, str]:
    """Branch number -> the module on whose result a factor is proven to be one on the branch.

    All branches are tried at once, then each by itself: a module that serves two of them may be right for neither.
    """
    left = {
        branch.number: [p for p in output_modules(trace, branch) if type(model.get_submodule(p)).forward not in _LAYERS]
        for branch in branches
    }
    found: dict[int, str] = {}
    while trying := [(branch, left[branch.number].pop(0)) for branch in branches if left[branch.number]]:
        for verdict in verify_outputs(model, inputs, trying):
            number = verdict.branch.number
            if verdict.verified:
                found[number], left[number] = next(path for b, path in trying if b.number == number), []
    return found
