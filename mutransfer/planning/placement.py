"""Where each forward multiplier goes: folded into init and lr, into the norm in front, or into the forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from mutransfer.errors import RoleError
from mutransfer.planning.attention import Carried
from mutransfer.planning.data import SwapPlan
from mutransfer.planning.forward import Correction
from mutransfer.planning.graph import NormFold, norm_in_front
from mutransfer.planning.laws import Law
from mutransfer.planning.ops import Trace
from mutransfer.planning.options import Options
from mutransfer.planning.roles import Assignment
from mutransfer.rules.table import Parameterization, Role

_LAYER_FORWARDS = {layer.forward for layer in (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
"""Forward passes of which the input or output can be scaled instead of the weight."""


@dataclass
class Placement:
    """What became of the multipliers.

    Attributes:
        form: "explicit" or "folded".
        folds: parameter -> the stored tensor over the table's.
        carried: the part of a fold that acts for another tensor (a tied readout, a softmax scale).
        multipliers: parameter -> multiplier of its own contribution in the forward pass.
        swaps: modules that apply those multipliers.
        why: parameter -> what to add to its reason.
        notes: what a user should know of the model as a whole.
    """

    form: str
    folds: dict[str, float] = field(default_factory=dict)
    carried: dict[str, float] = field(default_factory=dict)
    multipliers: dict[str, float] = field(default_factory=dict)
    swaps: list[SwapPlan] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def fold(self, name: str, factor: float, why: str) -> None:
        self.folds[name] = self.folds.get(name, 1.0) * factor
        self.explain(name, why)

    def carry(self, name: str, factor: float, why: str) -> None:
        self.carried[name] = self.carried.get(name, 1.0) * factor
        self.fold(name, factor, why)

    def explain(self, name: str, why: str) -> None:
        self.why[name] = f"{self.why.get(name, '')}; {why}"


@dataclass(frozen=True)
class Branches:
    """Multipliers of the residual branches, on the parameters that end them; `offset` are those that enter as 1 + w."""

    multipliers: Mapping[str, float] = field(default_factory=dict)
    offset: frozenset[str] = frozenset()


def place_multipliers(
    model: nn.Module,
    trace: Trace,
    roles: Mapping[str, Assignment],
    laws: Mapping[str, Law],
    options: Options,
    carried: Sequence[Carried],
    corrections: Sequence[Correction] = (),
    branches: Branches = Branches(),
) -> Placement:
    """Places every multiplier that is not 1.

    Args:
        carried: what parameters carry for an attention's softmax scale.
        corrections: what parameters carry to make up for constants of the forward pass that depend on width.
        branches: multipliers of the residual branches.

    Raises:
        RoleError: a multiplier that can go nowhere, or not into init and lr alone as form="folded" asks for, or a tied
            model under a table that has no ties.
    """
    _refuse_without_target(options, roles)
    placer = _Placer(model, trace, options, branches)
    for correction in corrections:
        placer.place_correction(correction, roles)
    for one in carried:
        placer.place_carried(one)
    for name, role in roles.items():
        constant = name in laws and not laws[name].centred
        placer.place_own(name, role, constant=constant)
        if role.readouts:
            placer.place_readout(name, role)
    return placer.result


class _Placer:
    def __init__(self, model: nn.Module, trace: Trace, options: Options, branches: Branches) -> None:
        self.model, self.trace, self.options, self.branches = model, trace, options, branches
        self.names = _all_names(model)
        self.given_back: dict[str, float] = {}
        self.result = Placement("explicit" if options.form == "explicit" else "folded")

    def place_correction(self, correction: Correction, roles: Mapping[str, Assignment]) -> None:
        """Parameters carry the inverse of a constant. Of a tied tensor only the use that is multiplied does: its
        readout through the multiplier there, its lookup through the tensor, which gives it back as a readout."""
        uses = {name: _times_used(self.trace, name) for name in correction.parameters}
        shared = [n for n, op in correction.parameters.items() if uses[n] > 1 and (op < 0 or not roles[n].readouts)]
        if self.options.init == "keep" or shared:
            reason = f"{shared[0]!r} is used elsewhere too" if shared else "values are kept"
            self.result.notes.append(f"not made up for ({reason}): {correction.why.partition(': ')[2]}")
            return
        for name, op in correction.parameters.items():
            back = self.given_back.get(name, 1.0)
            if any(use.op == op for use in roles[name].readouts):
                self.given_back[name] = back * correction.factor
                continue
            self.result.fold(name, correction.factor, correction.why)
            if roles[name].readouts:
                self.given_back[name] = back / correction.factor

    def place_carried(self, one: Carried) -> None:
        """A whole tensor's factor is folded; of rows that share a tensor with others no group has their lr."""
        if one.rows is None:
            self.result.carry(one.parameter, one.factor, f"carries the softmax scale's factor {one.factor:.4g}")
            return
        if self.options.form == "folded":
            raise RoleError(
                f"The softmax scale's factor {one.factor:.4g} on a part of {one.parameter!r} ({one.rows}) cannot be "
                "folded, since one tensor has one lr. Use form='auto'."
            )
        owners = (alias.rpartition(".") for alias in self.names[one.parameter])
        self.result.swaps += [SwapPlan(module, local, one.factor, "rows", one.rows) for module, _, local in owners]
        self.result.explain(
            one.parameter, f"{one.rows} are multiplied by {one.factor:.4g} in the forward pass, for the softmax scale"
        )

    def place_own(self, name: str, role: Assignment, *, constant: bool) -> None:
        """A parameter's own multiplier and its branch's; a tied tensor's as embedding cannot be folded, for it is a
        readout too."""
        branch = self.branches.multipliers.get(name, 1.0)
        multiplier = _own_multiplier(self.options, role, constant) * branch
        shared = bool(role.readouts) and self.options.hyperparameters.embedding_mult != 1.0
        if multiplier == 1.0:
            return
        if self.options.form == "explicit" and name in self.branches.offset:
            self._swap_output(name, multiplier)
        elif self.options.form == "explicit" or shared:
            self._swap(name, role, multiplier)
        else:
            whose = "the branch's multiplier" if branch != 1.0 else "multiplier"
            self.result.fold(name, multiplier, f"{whose} {multiplier:.4g} folded into init and lr")

    def _swap_output(self, name: str, multiplier: float) -> None:
        """A gain that enters as 1 + w is multiplied with all that its module returns."""
        owners = [alias.rpartition(".") for alias in self.names[name]]
        self.result.swaps += [SwapPlan(module, local, multiplier, "output") for module, _, local in owners]
        self.result.multipliers[name] = multiplier
        self.result.explain(name, f"its module's output is multiplied by {multiplier:.4g}")

    def _swap(self, name: str, role: Assignment, multiplier: float) -> None:
        """A multiplier in the forward pass: on the layer that alone uses the weight, else wherever it is read."""
        if role.readouts and self.options.init == "keep":
            raise RoleError(f"embedding_mult would change the readout that {name!r} is too; its values are kept.")
        modules = {use.module for use in self.trace.uses[name] if use not in role.readouts}
        if all(self._is_layer_weight(name, module) for module in modules):
            swaps = [SwapPlan(module, "weight", multiplier, "module") for module in sorted(modules)]
        elif role.readouts:
            raise RoleError(
                f"embedding_mult cannot reach {name!r}: it is embedding and readout at once, and no nn.Embedding looks "
                "it up. Look it up through an nn.Embedding, or untie it."
            )
        else:  # wherever it is read, under each of its names
            owners = (alias.rpartition(".") for alias in self.names[name])
            swaps = [SwapPlan(module, local, multiplier, "parameter") for module, _, local in owners]
        self.result.swaps += swaps
        self.result.multipliers[name] = multiplier
        self.result.explain(name, f"multiplied by {multiplier:.4g} in the forward pass")

    def _is_layer_weight(self, name: str, module: str) -> bool:
        of_layer = type(self.model.get_submodule(module)).forward in _LAYER_FORWARDS
        return of_layer and _local_name(module, self.names[name]) == "weight"

    def place_readout(self, name: str, role: Assignment) -> None:
        """A tied tensor's multiplier as readout: into the norm in front of it, else into the readout module."""
        table = self.options.table
        if not table.ties and self.options.form == "explicit":
            raise RoleError(
                f"{name!r} is embedding and readout at once (tied), which {table.name!r} initialises differently. "
                "Untie them, use 'mup', or form='folded'."
            )
        own = self.given_back.get(name, 1.0) * self.options.hyperparameters.output_mult
        multiplier = tied_multiplier(table, role.m_out) * own
        if multiplier == 1.0:
            return
        front = "form='explicit'" if self.options.form == "explicit" else self._norm_in_front(role)
        if isinstance(front, NormFold):
            for parameter in front.parameters:
                self.result.carry(parameter, multiplier, f"carries the tied readout's multiplier {multiplier:.4g}")
            self.result.explain(name, f"its readout multiplier {multiplier:.4g} is carried by {front.module!r}")
            self.result.notes.append(f"the hidden state after {front.module!r} is scaled by {multiplier:.4g}")
        else:
            self._swap_readouts(name, role, multiplier, front)

    def _norm_in_front(self, role: Assignment) -> NormFold | str:
        if len(role.readouts) > 1:
            return f"it is read out {len(role.readouts)} times"
        return norm_in_front(self.trace, role.readouts[0])

    def _swap_readouts(self, name: str, role: Assignment, multiplier: float, reason: str) -> None:
        if self.options.form == "folded":
            raise RoleError(f"The multiplier of the tied readout {name!r} cannot be folded: {reason}. Use form='auto'.")
        if self.options.init == "keep":
            raise RoleError(
                f"The multiplier of the tied readout {name!r} cannot be folded ({reason}), and in the forward pass it "
                "would change the function of a model whose values are kept (init='keep'). Untie the readout."
            )
        for module in dict.fromkeys(use.module for use in role.readouts):
            if not self._is_layer_weight(name, module):
                raise RoleError(
                    f"The tied readout {name!r} needs the multiplier {multiplier:.4g}, which can be neither folded "
                    f"({reason}) nor put into the forward pass, since no nn.Linear applies it. Read out through an "
                    "nn.Linear whose weight is the embedding's, or put a norm directly in front."
                )
            self.result.swaps.append(SwapPlan(module, "weight", multiplier, "module"))
        self.result.explain(name, f"as readout multiplied by {multiplier:.4g} in the forward pass ({reason})")


def _times_used(trace: Trace, name: str) -> int:
    """A factor beside an activation that is then summed, (h * v).sum(-1), is used once: the sum does not hold it."""
    return sum(use.op < 0 or name in trace.ops[use.op].parameters.values() for use in trace.uses[name])


def _own_multiplier(options: Options, role: Assignment, constant: bool) -> float:
    cell = options.table.row(role.role, constant=constant).multiplier.at(m_in=role.m_in, m_out=role.m_out)
    own = {Role.INPUT: options.hyperparameters.embedding_mult, Role.OUTPUT: options.hyperparameters.output_mult}
    return cell * (own.get(role.role, 1.0) if role.outermost else 1.0)


def _refuse_without_target(options: Options, roles: Mapping[str, Assignment]) -> None:
    """A hyperparameter that would do nothing is a mistake."""
    outermost = [role for role in roles.values() if role.outermost]
    targets = {
        "embedding_mult": any(role.role is Role.INPUT for role in outermost),
        "output_mult": any(role.role is Role.OUTPUT or role.readouts for role in outermost),
    }
    for name, reached in targets.items():
        if getattr(options.hyperparameters, name) != 1.0 and not reached:
            kind = "embedding or input layer" if name == "embedding_mult" else "readout"
            raise RoleError(f"{name} is given, but the model has no {kind} that it could reach. Leave it at 1.")


def tied_multiplier(table: Parameterization, m: float) -> float:
    """What a tied readout's logits are multiplied by: the readout's multiplier over the embedding's, in the gauge."""
    return (table.gauge_of(Role.OUTPUT) / table.gauge_of(Role.INPUT)).at(m_in=m, m_out=m)


def _all_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of each parameter -> all its names."""
    by_tensor: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_tensor.setdefault(id(parameter), []).append(name)
    return {names[0]: tuple(names) for names in by_tensor.values()}


def _local_name(module: str, names: tuple[str, ...]) -> str | None:
    """What a module itself calls a parameter of these names, if it owns it."""
    prefix = f"{module}." if module else ""
    local = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return next((name for name in local if "." not in name), None)
