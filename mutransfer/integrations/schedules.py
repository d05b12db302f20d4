"""Schedules that set one learning rate for all groups, where muP needs one factor: found before they do."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mutransfer.errors import ConfigError

STEPS = 1000
"""How far a schedule is run ahead. A floor under the learning rates shows from its first steps on."""
TOLERANCE = 1e-9
"""Relative; rounding in float64 stays far below over so many steps."""

NOTHING = 1e-12
"""A factor below this is none: numbers at the end of floating point keep no ratios."""
_REMEDIES = {
    "CosineAnnealingLR": "eta_min=0",
    "CosineAnnealingWarmRestarts": "eta_min=0",
    "OneCycleLR": "max_lr=[group['lr'] for group in optimizer.param_groups]",
    "CyclicLR": "lists for base_lr and max_lr, in the ratios of the groups",
    "ReduceLROnPlateau": "min_lr=0",
}
_LAMBDA = "LambdaLR(optimizer, lambda step: ...), one factor for all groups"


def check_schedule(schedule: Any) -> None:
    """Raises ConfigError where a schedule does not keep the ratios between the planned learning rates.

    The schedule is run ahead on a copy of the groups; the optimizer and the schedule given are untouched.

    Args:
        schedule: a scheduler of torch, of transformers or of your own, wrapped by accelerate or not; or an optimizer,
            of which the present learning rates are compared with the planned ones.

    Raises:
        ConfigError: the ratios are lost; the message names the schedule and what to use instead.
    """
    while not isinstance(getattr(schedule, "optimizer", None), Optimizer) and hasattr(schedule, "scheduler"):
        schedule = schedule.scheduler  # accelerate's wrapper
    if isinstance(schedule, Optimizer):
        _refuse_lost(schedule.param_groups, _planned(schedule.param_groups), "A schedule", _LAMBDA)
        return
    optimizer = getattr(schedule, "optimizer", None)
    if not isinstance(optimizer, Optimizer) or not callable(getattr(schedule, "step", None)):
        raise ConfigError(f"{schedule!r} is no schedule. Give a torch scheduler, or an optimizer.")
    planned = _planned(optimizer.param_groups)
    for part in _parts(schedule):
        name = type(part).__name__
        for groups in _ahead(part, optimizer):
            _refuse_lost(groups, planned, name, f"{_REMEDIES[name]}, or {_LAMBDA}" if name in _REMEDIES else _LAMBDA)


def _planned(groups: Sequence[dict[str, Any]]) -> list[float]:
    """Each group's lr before any schedule; a group that no plan made is taken as it was first, or is now."""
    return [float(group.get("planned_lr", group.get("initial_lr", group["lr"]))) for group in groups]


def _parts(schedule: Any) -> Iterator[Any]:
    """The schedules that one is put together from (SequentialLR, ChainedScheduler), or it alone."""
    inner = getattr(schedule, "_schedulers", None)
    if not inner:
        yield schedule
    for part in inner or ():
        yield from _parts(part)


def _ahead(schedule: Any, optimizer: Optimizer) -> Iterator[Sequence[dict[str, Any]]]:
    """The groups as they are now, and after each of the next steps, on copies."""
    ahead, groups = copy.copy(schedule), _Groups(optimizer)
    ahead.optimizer = groups
    ahead.__dict__.update({name: 0 for name in ("patience", "cooldown", "eps") if hasattr(schedule, name)})
    metrics = {"metrics": 0.0} if "metrics" in inspect.signature(schedule.step).parameters else {}
    left = getattr(schedule, "total_steps", None)
    steps = STEPS if left is None else min(STEPS, left - schedule.last_epoch - 1)
    yield groups.param_groups
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            ahead.step(**metrics)
            yield groups.param_groups


class _Groups(Optimizer):
    """An optimizer's groups with their numbers, without its parameters."""

    def __init__(self, optimizer: Optimizer) -> None:
        groups = [{**_numbers(group), "params": [nn.Parameter(torch.zeros(()))]} for group in optimizer.param_groups]
        super().__init__(groups, dict(optimizer.defaults))


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """Tensors, which schedulers write into, become numbers."""
    kept = {name: value for name, value in group.items() if name not in ("params", "param_names")}
    return {name: float(v) if isinstance(v, torch.Tensor) else v for name, v in kept.items()}


def _refuse_lost(groups: Sequence[dict[str, Any]], planned: Sequence[float], name: str, remedy: str) -> None:
    factors = [float(group["lr"]) / lr for group, lr in zip(groups, planned, strict=True) if lr > 0]
    tolerance = 1e-5 if any(isinstance(group["lr"], torch.Tensor) for group in groups) else TOLERANCE
    if factors and not math.isclose(min(factors), max(factors), rel_tol=tolerance, abs_tol=NOTHING):
        raise ConfigError(
            f"{name} does not keep the ratios between the groups' learning rates, which are what the parameterization "
            f"is: it multiplies one by {min(factors):.4g} and another by {max(factors):.4g}. Use {remedy}."
        )
