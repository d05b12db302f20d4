"""A model in parts: pipeline stages, or torchtitan's list of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from torch import nn

from mutransfer.apply.names import plain_name
from mutransfer.convert import Plan
from mutransfer.errors import ConfigError, nearest


class _Joined(nn.Module):
    """Some parts of one model, each parameter under the name that it has in the whole."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        for part in self.parts:
            yield from part.named_parameters(prefix, recurse, remove_duplicate)


def join_parts(plan: Plan, parts: Sequence[nn.Module]) -> tuple[Plan, nn.Module]:
    """The plan of some parts of a model, and those parts as one module for its verbs.

    >>> # plan, model = join_parts(plan, model_parts)
    >>> # optimizer = plan.make_optimizer(model, lr=2**-8); plan.clip_grad_norm_(model, 1.0)

    Args:
        plan: of the whole model, applied before it was taken apart.
        parts: the stages on this rank, or all; their parameters have the names that they have in the whole.

    Raises:
        ConfigError: a parameter that is not planned.
    """
    joined = _Joined(parts)
    present = {plain_name(name) for name, _ in joined.named_parameters()}
    planned = {name for line in plan for name in (line.name, *line.aliases)}
    for name in present - planned:
        raise ConfigError(
            f"{name!r} of the model parts is not in the plan: parts keep the names of the whole model."
            f"{nearest(name, planned)}"
        )
    lines = tuple(line for line in plan if present & {line.name, *line.aliases})
    return dataclasses.replace(plan, params=lines), joined
