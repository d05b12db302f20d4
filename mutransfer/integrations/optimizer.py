"""An optimizer that somebody else has made, its groups split as planned; and what became of them, to read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mutransfer.convert import Plan
from mutransfer.errors import ConfigError
from mutransfer.rules.optimizers import find_optimizer

_FAMILIES = {"adamw": ("AdamW",), "adam": ("Adam",), "adam-l2": ("Adam",), "sgd": ("SGD",)}
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


def plan_optimizer(optimizer: Optimizer, plan: Plan, model: nn.Module) -> Optimizer:
    """Splits the groups of a fresh optimizer as planned, in place: what each group says of lr, decay and eps (a
    no-decay list, layer-wise learning rates) is what the planned factors multiply. Returns it.

    Args:
        optimizer: of the plan's family, over the model's parameters, before its first step and before any schedule.
        plan: the model's.
        model: as planned; wrapped or sharded or not.

    Raises:
        ConfigError: another family, or an optimizer that is planned already, has stepped or is under a schedule.
    """
    _refuse(optimizer, plan)
    groups = [_own(group) for group in optimizer.param_groups]
    defaults = optimizer.defaults
    planned = plan.param_groups(model, lr=defaults["lr"], eps=defaults.get("eps", 1e-8), groups=groups)
    optimizer.param_groups.clear()
    for group in planned:
        optimizer.add_param_group(group)
    return optimizer


def _own(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "param_names"}


def _refuse(optimizer: Optimizer, plan: Plan) -> None:
    name = type(optimizer).__name__
    if name not in _FAMILIES.get(plan.optimizer, ()):
        raise ConfigError(
            f"The plan is for {plan.optimizer!r} and the optimizer is {name}, which other rules hold for. Parameterize "
            f"for the optimizer that you train with, or use {find_optimizer(plan.optimizer).name!r}."
        )
    if any("planned_lr" in group for group in optimizer.param_groups):
        raise ConfigError(f"The groups of this {name} are planned already: once more would scale them twice.")
    if optimizer.state or any("initial_lr" in group for group in optimizer.param_groups):
        raise ConfigError(
            f"This {name} has stepped, or is under a schedule, before its groups were planned. Plan it when it is made."
        )


def list_groups(groups: Optimizer | Iterable[Mapping[str, Any]]) -> str:
    """What trains at which lr, decay and eps, one line per group; parameters that differ in their block's index only
    are one name.

    >>> import torch
    >>> print(list_groups([{"lr": 0.1, "weight_decay": 0.0, "param_names": ["0.a", "1.a", "b"], "params": []}]))
    lr 0.1, weight_decay 0: *.a x2, b
    """
    listed = groups.param_groups if isinstance(groups, Optimizer) else groups
    return "\n".join(_line(group) for group in listed)


def _line(group: Mapping[str, Any]) -> str:
    numbers = [f"{name} {float(group[name]):.4g}" for name in ("lr", "weight_decay", "eps") if name in group]
    names = Counter(_INDEX.sub("*", name) for name in group.get("param_names", ()))
    if not names:
        return f"{', '.join(numbers)}: {len(group['params'])} tensors without names"
    return f"{', '.join(numbers)}: {', '.join(f'{n} x{count}' if count > 1 else n for n, count in names.items())}"
