"""What can be checked: a converted model, hand-written muP code, and the control that must fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mutransfer.check.builds import Build
from mutransfer.check.runs import Subject
from mutransfer.convert import Plan
from mutransfer.convert import plan as make_plan
from mutransfer.errors import ConfigError
from mutransfer.rules.optimizers import find_optimizer
from mutransfer.rules.table import Parameterization
from mutransfer.rules.tables import PARAMETERIZATIONS

MakeOptimizer = Callable[[nn.Module, int], Optimizer]


def converted(build: Build, table: Parameterization, lr: float, options: Mapping[str, Any]) -> Subject:
    """A model in a parameterization; one plan per width serves all seeds.

    Args:
        build: width -> fresh model.
        table: the parameterization.
        lr: of the base model.
        options: of `mutransfer.plan` (base, optimizer, ...).
    """

    @cache
    def plan_of(width: int) -> Plan:
        with torch.random.fork_rng():
            return make_plan(build(width), table, factory=build, **options)

    def make(width: int) -> tuple[nn.Module, Optimizer]:
        plan, model = plan_of(width), build(width)
        plan.apply(model)
        return model, plan.make_optimizer(model, lr=lr)

    def carried(width: int) -> Mapping[str, float]:
        return {line.name: line.carried for line in plan_of(width) if line.carried != 1.0}

    return Subject(table.name, make, carried)


def handwritten(build: Build, make_optimizer: MakeOptimizer, name: str) -> Subject:
    """The user's own muP code, as it is."""

    def make(width: int) -> tuple[nn.Module, Optimizer]:
        model = build(width)
        optimizer = make_optimizer(model, width)
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"make_optimizer returned a {type(optimizer).__name__}; a torch.optim.Optimizer is expected."
            )
        return model, optimizer

    return Subject(name, make, lambda width: {})


def control(build: Build, lr: float, options: Mapping[str, Any], *, is_converted: bool) -> Subject:
    """What must not pass: standard parameterization, or one lr for all parameters of a hand-written model."""
    if is_converted:
        plain = {key: options[key] for key in ("base", "optimizer", "example_inputs", "scale", "roles")}
        return converted(build, PARAMETERIZATIONS["sp"], lr, plain)
    kind = torch.optim.SGD if find_optimizer(options["optimizer"]).family == "sgd" else torch.optim.Adam
    return handwritten(build, lambda model, width: kind(model.parameters(), lr=lr), "one lr for all")
