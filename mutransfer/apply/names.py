"""Parameters by name, through the wrappers that put a prefix in front of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mutransfer.errors import ConfigError, ShapeError
from mutransfer.planning.data import ParamPlan, PlanData

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP1 and activation checkpointing insert into a parameter's name."""


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor: this rank holds a part, or one of several copies."""
    return hasattr(tensor, "device_mesh")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; a sharded one is gathered, for which every rank must ask."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def plain_name(name: str) -> str:
    """The name that the parameter has in the model itself.

    >>> plain_name("_orig_mod.blocks.0.weight")
    'blocks.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def refuse_unnamed(call: str, given: Sequence[object]) -> None:
    """Raises ConfigError for arguments behind the model that are not given by name."""
    if given:
        raise ConfigError(
            f"plan.{call} takes the model and nothing else without a name: give parameter groups of your own as "
            "groups=, and numbers as lr=, weight_decay= and eps=."
        )


def planned_parameters(model: nn.Module, plan: PlanData) -> list[tuple[ParamPlan, Tensor]]:
    """Every parameter with its line, in the model's order.

    Raises:
        ConfigError: it is no model.
        ShapeError: the model is not the one that was planned.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"A plan knows parameters by their names, which a {type(model).__name__} has not: give the model itself in "
            "place of model.parameters(), and parameter groups of your own as groups=."
        )
    lines = {name: line for line in plan for name in (line.name, *line.aliases)}
    found = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    if found and all(name.startswith("module.") for name in found) and not set(found) & set(lines):
        found = {name.removeprefix("module."): parameter for name, parameter in found.items()}
    unknown = [name for name in found if name not in lines]
    planned = {lines[name].name for name in found if name in lines}
    missing = [line.name for line in plan if line.name not in planned]
    if unknown or missing:
        raise ShapeError(
            f"The plan was made for another model: not planned {unknown[:3]}, not in the model {missing[:3]}. "
            "Make a plan for this model."
        )
    for name, parameter in found.items():
        if tuple(parameter.shape) != lines[name].shape:
            raise ShapeError(
                f"{name!r} is {tuple(parameter.shape)} here and {lines[name].shape} in the plan. "
                "Make a plan for this model."
            )
    return [(lines[name], parameter) for name, parameter in found.items()]
