"""What can be checked: a converted model, hand-written code, and the controls that must fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mutransfer.check.axes import AxisName
from mutransfer.check.builds import Build
from mutransfer.check.measure import InRows
from mutransfer.check.runs import Settings, Subject
from mutransfer.convert import Plan
from mutransfer.errors import ConfigError
from mutransfer.planning.data import Rows
from mutransfer.rules.optimizers import find_optimizer

MakeOptimizer = Callable[[nn.Module, int], Optimizer]
NEGLIGIBLE = 1e-10
"""A factor that leaves of an eps of 1e-8 what float32 can still square."""
DECAY = 0.1
"""Of the groups that are read, never of those that train: any number shows the ratios."""


def converted(name: str, build: Build, plan_of: Callable[[int], Plan], lr: float) -> Subject:
    """A model in a parameterization.

    Args:
        name: of the parameterization.
        build: size -> fresh model.
        plan_of: size -> plan.
        lr: of the base model.
    """

    def make(size: int) -> tuple[nn.Module, Optimizer]:
        plan, model = plan_of(size), build(size)
        plan.apply(model)
        optimizer = plan.make_optimizer(model, lr=lr)
        if find_optimizer(plan.optimizer).has_eps:
            _without_weight(optimizer)
        return model, optimizer

    def carried(size: int) -> Mapping[str, float]:
        return {line.name: line.carried for line in plan_of(size) if line.carried != 1.0}

    def in_rows(size: int) -> InRows:
        plan = plan_of(size)
        found: dict[str, dict[tuple[Rows, float], None]] = {}
        for swap in plan.swaps:
            if swap.rows is not None:
                name = plan[f"{swap.module}.{swap.parameter}".removeprefix(".")].name
                found.setdefault(name, {})[swap.rows, swap.multiplier] = None
        return {name: tuple(parts) for name, parts in found.items()}

    def settings(sizes: Iterable[int]) -> Mapping[int, Mapping[str, Settings]]:
        with torch.random.fork_rng():
            return {size: _planned_settings(plan_of(size), build(size), lr) for size in sizes}

    return Subject(name, make, carried, in_rows, settings)


def _without_weight(optimizer: Optimizer) -> None:
    """Eps is read off the groups. In training, a gradient that is no larger (behind a layer scale of 1e-6, or what is
    normalized to length 1) would hide the learning rate's exponent."""
    for group in optimizer.param_groups:
        group["eps"] *= NEGLIGIBLE


def _planned_settings(plan: Plan, model: nn.Module, lr: float) -> Mapping[str, Settings]:
    """Read off the groups; a gain that enters as 1 + w and holds a multiplier can have no decay."""
    decays = find_optimizer(plan.optimizer).decay != "none"
    kept = {line.name for line in plan if line.offset and line.fold != 1.0}
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, p in model.named_parameters():
        if p.requires_grad:
            parts[name in kept].append(p)
    own = [{"params": part, "weight_decay": DECAY * decays * (part is parts[0])} for part in parts if part]
    return _named(model, plan.param_groups(model, lr=lr, groups=own))


def handwritten(name: str, build: Build, make_optimizer: MakeOptimizer) -> Subject:
    """The user's own code, as it is."""

    def make(size: int) -> tuple[nn.Module, Optimizer]:
        model = build(size)
        optimizer = make_optimizer(model, size)
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"make_optimizer returned a {type(optimizer).__name__}; a torch.optim.Optimizer is expected."
            )
        return model, optimizer

    def settings(sizes: Iterable[int]) -> Mapping[int, Mapping[str, Settings]]:
        with torch.random.fork_rng():
            made = {size: make(size) for size in sizes}
        found = {size: _named(model, optimizer.param_groups) for size, (model, optimizer) in made.items()}
        one_eps = len({s.eps for settings in found.values() for s in settings.values()}) == 1
        return {size: _without_eps(settings) if one_eps else settings for size, settings in found.items()}

    return Subject(name, make, lambda size: {}, lambda size: {}, settings)


def _without_eps(found: Mapping[str, Settings]) -> Mapping[str, Settings]:
    """Where it is one number at all sizes, it is left alone, which no one calls scaled wrongly."""
    return {name: replace(settings, eps=None) for name, settings in found.items()}


def _named(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> Mapping[str, Settings]:
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, Settings] = {}
    for group in groups:
        eps, decay = group.get("eps"), float(group.get("weight_decay", 0.0))
        settings = Settings(float(group["lr"]), None if eps is None else float(eps), decay)
        found |= {names[id(p)]: settings for p in group["params"] if id(p) in names}
    return found


def one_lr(build: Build, lr: float, optimizer: str) -> Subject:
    """The control in width of hand-written code: its model, with one lr for all parameters."""
    kind = torch.optim.SGD if find_optimizer(optimizer).family == "sgd" else torch.optim.Adam
    return handwritten("one lr for all", build, lambda model, width: kind(model.parameters(), lr=lr))


def growing_lr(subject: Subject, axis: AxisName, base: int) -> Subject:
    """The control of what one lr may be right for: every lr grows with the size."""

    def make(size: int) -> tuple[nn.Module, Optimizer]:
        model, optimizer = subject.make(size)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * size / base
        return model, optimizer

    return replace(subject, name=f"every lr times the {axis}", make=make)


def largest_lr(subject: Subject, size: int) -> float:
    """Of the groups of the subject's own optimizer at one size."""
    return max(settings.lr for settings in subject.settings((size,))[size].values())


def keeps_lrs(subject: Subject, small: int, large: int) -> bool:
    """Whether the optimizer gives every parameter the same lr at both sizes."""
    made = subject.settings((small, large))
    return all(name in made[small] and math.isclose(s.lr, made[small][name].lr) for name, s in made[large].items())
