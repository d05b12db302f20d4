"""Planned factors on lr, eps and weight decay as few merged parameter groups of a stock torch optimizer."""

from __future__ import annotations

import math
import numbers
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from mutransfer.apply.names import planned_parameters
from mutransfer.errors import ConfigError, RoleError, RuleError, few
from mutransfer.planning.data import ParamPlan, PlanData
from mutransfer.rules.optimizers import find_optimizer

EPS = 1e-8
"""torch's own default for the Adam family."""


Group = dict[str, Any]


def param_groups(
    model: nn.Module,
    plan: PlanData,
    *,
    lr: float | Tensor,
    weight_decay: float = 0.0,
    eps: float = EPS,
    groups: Iterable[Mapping[str, Any]] | None = None,
) -> list[Group]:
    """Groups for `torch.optim`, one per distinct (lr, eps, weight decay) and device mesh, each with its `param_names`.

    Every group carries its own lr, eps and weight decay, so the optimizer's defaults do not apply to them, and its lr
    once more as `planned_lr`: what schedules and checkpoints leave alone.

    Args:
        model: the planned model, wrapped or sharded or not.
        plan: its plan.
        lr, weight_decay, eps: the base model's values, which the planned factors multiply.
        groups: the user's own groups (a no-decay list, layer-wise lrs): each is split further, and what it says of
            lr, weight_decay and eps is what the factors multiply; its other keys are kept. Parameters that are in
            none of them are left out, as torch does (a second optimizer may have them), and a warning lists them.

    Raises:
        ConfigError: a value out of range, a name in a parameter's place, or a parameter that is in the groups twice.
        RuleError: weight decay where the optimizer has no width law for it.
        RoleError: a group with a parameter that is not the model's.
    """
    lines = [(line, p) for line, p in planned_parameters(model, plan) if p.requires_grad]
    own = [{"params": [p for _, p in lines]}] if groups is None else _checked_groups(groups)
    by_tensor = {id(p): line for line, p in lines}
    made: list[Group] = []
    for group in own:
        values = {"lr": lr, "weight_decay": weight_decay, "eps": eps} | dict(group)
        _check(values, plan)
        made += _split(values, _members(group, by_tensor, model), plan)
    _refuse_repeated(made)
    _warn_left_out(lines, made)
    return made


def _warn_left_out(lines: Sequence[tuple[ParamPlan, Tensor]], made: Sequence[Group]) -> None:
    grouped = {name for group in made for name in group["param_names"]}
    left = [line.name for line, _ in lines if line.name not in grouped]
    if left:
        warnings.warn(
            f"groups= leaves out {few(left)}: an optimizer over them does not train what is left out. Add it to a "
            "group, or set requires_grad=False where it is to stay as it is.",
            stacklevel=4,
        )


def _refuse_repeated(made: Sequence[Group]) -> None:
    counts = Counter(name for group in made for name in group["param_names"])
    for name, count in counts.items():
        if count > 1:
            raise ConfigError(
                f"groups= holds {name!r} {count} times: an optimizer would step it as often. Leave it in one, once."
            )


def _checked_groups(groups: Any) -> list[Mapping[str, Any]]:
    """Raises ConfigError for what torch's optimizers would not take as groups."""
    own = list(groups) if isinstance(groups, Iterable) else [groups]
    for group in own:
        if not (isinstance(group, Mapping) and isinstance(group.get("params"), Iterable)):
            given = f"a dict with {', '.join(map(repr, group))}" if isinstance(group, Mapping) else type(group).__name__
            raise ConfigError(
                f"groups= holds {given} where a parameter group is expected: a dict with its parameters under 'params'."
            )
    return own


def _members(
    group: Mapping[str, Any], by_tensor: Mapping[int, ParamPlan], model: nn.Module
) -> list[tuple[ParamPlan, Tensor]]:
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    tensors = [item[1] if isinstance(item, tuple) else item for item in _listed(group["params"])]
    unknown = [t for t in tensors if id(t) not in by_tensor and id(t) not in frozen]
    if unknown:
        _refuse_name(unknown[0])
        words = f"a tensor of shape {tuple(unknown[0].shape)}" if isinstance(unknown[0], Tensor) else repr(unknown[0])
        raise RoleError(
            f"A parameter group holds {words} that is no parameter of this model. "
            "Make the groups from the model that was parameterized."
        )
    return [(by_tensor[id(t)], t) for t in tensors if id(t) in by_tensor]


def _refuse_name(item: object) -> None:
    """Raises ConfigError for a name in a parameter's place: torch's optimizers take none either."""
    if isinstance(item, str):
        raise ConfigError(
            f"A parameter group holds the name {item!r}, and tensors are expected, or (name, tensor) pairs. "
            f"Give model.get_parameter({item!r}) in its place."
        )


def _listed(params: Any) -> Sequence[Any]:
    return [params] if isinstance(params, Tensor | str) else list(params)


def _split(values: Mapping[str, Any], members: Sequence[tuple[ParamPlan, Tensor]], plan: PlanData) -> list[Group]:
    has_eps = find_optimizer(plan.optimizer).has_eps
    merged: dict[tuple[Any, ...], Group] = {}
    for line, tensor in members:
        _refuse_decay(line, float(values["weight_decay"]))
        mesh = getattr(tensor, "device_mesh", None)  # no kernel takes whole and sharded tensors at once
        key = (line.lr, line.eps, line.weight_decay, mesh)
        if key not in merged:
            scaled = {"lr": values["lr"] * line.lr, "weight_decay": values["weight_decay"] * line.weight_decay}
            if has_eps:
                scaled["eps"] = values["eps"] * line.eps
            rest = {k: v for k, v in values.items() if k not in ("params", "param_names", "eps")}
            merged[key] = {"params": [], "param_names": [], **rest, **scaled, "planned_lr": float(scaled["lr"])}
        merged[key]["params"].append(tensor)
        merged[key]["param_names"].append(line.name)
    return list(merged.values())


def _refuse_decay(line: ParamPlan, weight_decay: float) -> None:
    """A gain that enters as 1 + w and holds a branch's multiplier c is c (1 + w) - 1: decay would pull it to 0, not to
    c - 1."""
    if line.offset and line.fold != 1.0 and weight_decay * line.weight_decay > 0:
        raise RuleError(
            f"{line.name!r} enters as {line.offset:g} + w and holds its branch's multiplier, so no weight decay trains "
            "it as the base's would. Leave it out of the decay (a group of its own with weight_decay=0 in groups=), or "
            "use form='explicit'."
        )


def _check(values: Mapping[str, Any], plan: PlanData) -> None:
    for name in ("lr", "weight_decay", "eps"):
        if not _is_number(values[name]):
            raise ConfigError(f"{name}={values[name]!r} must be a number.")
    if not 0 < float(values["lr"]) < math.inf:
        raise ConfigError(f"lr={float(values['lr']):g} must be positive and finite.")
    if not all(0 <= float(values[name]) < math.inf for name in ("weight_decay", "eps")):
        raise ConfigError("weight_decay and eps must be finite and not negative.")
    if float(values["weight_decay"]) > 0 and find_optimizer(plan.optimizer).decay == "none":
        raise RuleError(
            f"No width law is known for L2 decay inside {plan.optimizer}'s gradient. Use optimizer='adamw', or ask for "
            "optimizer='adam-l2' by name, which keeps the decay constant over width."
        )


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def make_optimizer(plan: PlanData, groups: Sequence[Group], *, lr: float | Tensor, **options: Any) -> Optimizer:
    """The stock torch optimizer of the plan's family over groups made by `param_groups`; fused where torch supports it.

    Args:
        lr: of groups that are added later.
        options: passed on: betas, momentum, nesterov, fused, capturable, ...
    """
    classes: dict[str, Any] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adam-l2": torch.optim.Adam,
    }
    if "foreach" not in options:
        options.setdefault("fused", _fusible(groups))
    optimizer: Optimizer = classes[plan.optimizer](groups, lr=lr, **options)
    return optimizer


def _fusible(groups: Sequence[Group]) -> bool:
    supported = _get_fused_kernels_supported_devices()
    return all(p.device.type in supported and p.is_floating_point() for group in groups for p in group["params"])
