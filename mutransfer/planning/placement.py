"""Where each forward multiplier goes: folded into init and lr, into the norm in front, or into the forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from mutransfer.errors import RoleError
from mutransfer.planning.data import SwapPlan
from mutransfer.planning.graph import NormFold, norm_in_front
from mutransfer.planning.laws import Law
from mutransfer.planning.roles import Assignment
from mutransfer.planning.trace import Trace
from mutransfer.rules.table import Parameterization, Role

if TYPE_CHECKING:
    from mutransfer.planning.resolve import Options


@dataclass
class Placement:
    """What became of the multipliers.

    Attributes:
        form: "explicit" or "folded".
        folds: parameter -> the stored tensor over the table's.
        multipliers: parameter -> multiplier of its own contribution in the forward pass.
        swaps: modules that apply those multipliers.
        why: parameter -> what to add to its reason.
    """

    form: str
    folds: dict[str, float] = field(default_factory=dict)
    multipliers: dict[str, float] = field(default_factory=dict)
    swaps: tuple[SwapPlan, ...] = ()
    why: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def place_multipliers(
    model: nn.Module,
    trace: Trace,
    roles: Mapping[str, Assignment],
    laws: Mapping[str, Law],
    options: Options,
    query_folds: Mapping[str, float],
) -> Placement:
    """Places every multiplier that is not 1.

    Raises:
        RoleError: a tied readout whose multiplier can go nowhere, or a tied model under a table that has no ties.
    """
    placement = Placement("explicit" if options.form == "explicit" else "folded", folds=dict(query_folds))
    names = _module_names(model)
    for name, role in roles.items():
        constant = name in laws and laws[name].kind == "constant"
        multiplier = _own_multiplier(options, role, constant)
        if role.readout is not None:
            _place_tied(model, trace, name, role, options, placement, names)
        if multiplier == 1.0:
            continue
        shared = role.readout is not None and options.hyperparameters.embedding_mult != 1.0
        if options.form == "explicit" or shared:
            _swap(model, trace, name, multiplier, placement, names)
        else:
            placement.folds[name] = placement.folds.get(name, 1.0) * multiplier
            placement.why[name] = placement.why.get(name, "") + f"; multiplier {multiplier:.4g} folded into init and lr"
    return placement


def _own_multiplier(options: Options, role: Assignment, constant: bool) -> float:
    cell = options.table.row(role.role, constant=constant).multiplier.at(m_in=role.m_in, m_out=role.m_out)
    own = {Role.INPUT: options.hyperparameters.embedding_mult, Role.OUTPUT: options.hyperparameters.output_mult}
    return cell * own.get(role.role, 1.0)


def _place_tied(
    model: nn.Module,
    trace: Trace,
    name: str,
    role: Assignment,
    options: Options,
    placement: Placement,
    names: Mapping[str, tuple[str, ...]],
) -> None:
    """A tied tensor's readout multiplier: into the norm in front of it, else into the readout module."""
    assert role.readout is not None
    table = options.table
    if not table.ties and options.form == "explicit":
        raise RoleError(
            f"{name!r} is embedding and readout at once (tied), which {table.name!r} initialises differently. "
            "Untie them, use 'mup', or form='folded'."
        )
    multiplier = tied_multiplier(table, role.m_out) * options.hyperparameters.output_mult
    if multiplier == 1.0:
        return
    reason = "form='explicit'"
    if options.form != "explicit":
        front = norm_in_front(trace, role.readout)
        if isinstance(front, NormFold):
            for parameter in front.parameters:
                placement.folds[parameter] = placement.folds.get(parameter, 1.0) * multiplier
                placement.why[parameter] = f"; carries the tied readout's multiplier {multiplier:.4g}"
            placement.why[name] = f"; its readout multiplier {multiplier:.4g} is carried by {front.module!r}"
            placement.notes += (f"the hidden state after {front.module!r} is scaled by {multiplier:.4g}",)
            return
        reason = front
    _swap_readout(model, name, role, multiplier, placement, names, reason, must=options.form == "folded")


def tied_multiplier(table: Parameterization, m: float) -> float:
    """What a tied readout's logits are multiplied by: the readout's multiplier over the embedding's, in the gauge."""
    return (table.gauge_of(Role.OUTPUT) / table.gauge_of(Role.INPUT)).at(m_in=m, m_out=m)


def _swap_readout(
    model: nn.Module,
    name: str,
    role: Assignment,
    multiplier: float,
    placement: Placement,
    names: Mapping[str, tuple[str, ...]],
    reason: str,
    *,
    must: bool,
) -> None:
    assert role.readout is not None
    local = _local_name(role.readout.module, names[name])
    module = model.get_submodule(role.readout.module)
    if must:
        raise RoleError(f"The multiplier of the tied readout {name!r} cannot be folded: {reason}. Use form='auto'.")
    if local is None or not isinstance(module, nn.Linear):
        raise RoleError(
            f"The tied readout {name!r} needs the multiplier {multiplier:.4g}, which can be neither folded ({reason}) "
            "nor put into the forward pass, since no nn.Linear applies it. Read out through an nn.Linear whose weight "
            "is the embedding's, or put a norm directly in front."
        )
    placement.swaps += (SwapPlan(role.readout.module, local, multiplier, "module"),)
    placement.why[name] = f"; as readout multiplied by {multiplier:.4g} in the forward pass ({reason})"


def _swap(
    model: nn.Module,
    trace: Trace,
    name: str,
    multiplier: float,
    placement: Placement,
    names: Mapping[str, tuple[str, ...]],
) -> None:
    """A multiplier in the forward pass: on the layer that uses the weight, else on the parameter where it is read."""
    for use in trace.uses[name]:
        local = _local_name(use.module, names[name])
        if local == "weight" and type(model.get_submodule(use.module)).forward in _LAYER_FORWARDS:
            placement.swaps += (SwapPlan(use.module, local, multiplier, "module"),)
            break
    else:
        module, _, local = name.rpartition(".")
        placement.swaps += (SwapPlan(module, local, multiplier, "parameter"),)
    placement.multipliers[name] = multiplier
    placement.why[name] = placement.why.get(name, "") + f"; multiplied by {multiplier:.4g} in the forward pass"


_LAYER_FORWARDS = {layer.forward for layer in (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)}


def _module_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of each parameter -> all its names."""
    by_tensor: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_tensor.setdefault(id(parameter), []).append(name)
    return {names[0]: tuple(names) for names in by_tensor.values()}


def _local_name(module: str, names: tuple[str, ...]) -> str | None:
    prefix = f"{module}." if module else ""
    for name in names:
        local = name.removeprefix(prefix)
        if name.startswith(prefix) and "." not in local:
            return local
    return None
