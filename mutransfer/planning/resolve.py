"""Sizes, uses and laws times a table and an optimizer: the Plan. Reads the model, changes nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from torch import nn

from mutransfer.errors import ConfigError, RoleError, few
from mutransfer.planning.attention import AttentionResult, plan_attention
from mutransfer.planning.base import Base
from mutransfer.planning.data import ParamPlan, PlanData
from mutransfer.planning.depth import Factors, plan_depth
from mutransfer.planning.forward import Forward, compare_forward, forward_of, names_of
from mutransfer.planning.hyperparameters import check_patterns
from mutransfer.planning.laws import Law
from mutransfer.planning.observe import Observed
from mutransfer.planning.ops import Trace
from mutransfer.planning.options import Options
from mutransfer.planning.placement import Branches, Placement, place_multipliers
from mutransfer.planning.roles import GIVEN, NOT_REACHED, Assignment, assign_roles
from mutransfer.planning.sites import attention_sites
from mutransfer.planning.stacks import block_kinds, block_of
from mutransfer.planning.trace import evaluating
from mutransfer.planning.trace_base import BaseTrace
from mutransfer.planning.untouched import untouched_rng
from mutransfer.rules.table import Parameterization, Role, Row


def resolve(seen: Observed, options: Options) -> PlanData:
    """The plan of a model that was observed for such options. See `mutransfer.parameterize` for the errors."""
    with untouched_rng(), evaluating(seen.model, options.table.depth is not None):
        return _resolve(seen, options)


def _resolve(seen: Observed, options: Options) -> PlanData:
    model, known, traced, own = seen.model, seen.known, seen.traced, seen.forward
    check_patterns(options.hyperparameters, traced.uses)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    untouched = frozen if options.init == "keep" else set()
    roles = assign_roles(known.dims, traced, options.roles, strict=options.strict, untouched=untouched)
    depth = plan_depth(known, model, traced, seen.base, options)
    at_base, base_notes = _forward_at_base(known, seen.base, own, options)
    _refuse_layer_index(known, (traced, *depth.towers), options)
    attention = _attention(seen, at_base, options)
    corrections, constant_notes = compare_forward(traced, at_base)
    factors = {name: depth.factors(name, options) for name in roles}
    branches = Branches({name: f.multiplier for name, f in factors.items()}, depth.offset)
    placement = place_multipliers(model, traced, roles, known.laws, options, attention.carried, corrections, branches)
    aliases = _aliases(model)
    lines = tuple(
        dataclasses.replace(
            _line(name, roles[name], factors[name], known, placement, options),
            place=depth.place(name),
            m_depth=depth.m_depth.get(name, 1.0),
            offset=1.0 if name in depth.offset else 0.0,
            aliases=aliases[name],
            frozen=name in frozen,
        )
        for name in roles
    )
    _refuse_normalized(lines, traced)
    return PlanData(
        parameterization=options.table.name,
        optimizer=options.optimizer.name,
        source=options.table.source,
        form=placement.form,
        init=options.init,
        base=known.words,
        params=lines,
        swaps=(*placement.swaps, *depth.swaps(options)),
        attention=attention.set,
        base_forward=own if options.init == "keep" else at_base,
        hyperparameters=options.hyperparameters.set_values(),
        notes=(
            *attention.notes,
            *base_notes,
            *constant_notes,
            *depth.notes(options),
            *placement.notes,
            *_notes(lines, traced),
        ),
    )


def _refuse_normalized(lines: tuple[ParamPlan, ...], traced: Trace) -> None:
    """A weight that is normalized in the forward pass does not feel a factor on it; a user who names its role knows."""
    for line in lines:
        unknown = line.name in traced.normalized and GIVEN not in line.why
        if unknown and (line.init_factor, line.fold, line.multiplier) != (1.0, 1.0, 1.0):
            raise RoleError(
                f"{line.name!r} is normalized in the forward pass, so the factor that it needs would do nothing. Take "
                "the normalization (weight_norm, spectral_norm) off this layer, or say that the factor is wanted: "
                f"roles={{{line.name!r}: {line.role.value!r}}}."
            )


def _attention(seen: Observed, at_base: Forward, options: Options) -> AttentionResult:
    mult = options.hyperparameters.attn_mult
    if options.init != "keep":
        of_model = seen.model, seen.traced, seen.inputs
        return plan_attention(*of_model, at_base.scales, options.table.attention, mult, by_config=seen.by_config)
    if seen.forward.scales and mult != 1.0:
        raise ConfigError("attn_mult would change the function of a model whose values are kept (init='keep').")
    return AttentionResult(
        (), (), ("softmax scales are left as they are (init='keep')",) if seen.forward.scales else ()
    )


def _forward_at_base(
    known: Base, base: BaseTrace | None, own: Forward, options: Options
) -> tuple[Forward, tuple[str, ...]]:
    """The base's forward pass under the model's names. Where there is none, the model is taken to have no constant that
    depends on width, and a note says so."""
    seen = known.forward if base is None else forward_of(base.trace)
    if seen is not None:
        return seen.seen_from(own, known.stacks, shared=options.table.depth is not None), ()
    return own, ("the base does not take the example inputs: constants that depend on width were not looked for",)


def _refuse_layer_index(known: Base, traces: Sequence[Trace], options: Options) -> None:
    """Between two depths a block takes the place of any other one: what differs by its index has no counterpart. Of a
    scale with a learned temperature that is the numbers beside it; of the temperature, its law."""
    if not known.stacks.deeper or options.init == "keep":
        return
    templates = known.stacks.templates
    sizes = {name: tuple(dim.size for dim in dims) for name, dims in known.dims.items()}
    kinds = block_kinds(sizes, templates)
    alike: dict[tuple[object, ...], dict[object, str]] = {}
    for name, law in known.own_laws.items():
        if law.kind == "drawn" and not law.measured:
            drawn = ("The init", templates.of(name), sizes[name], kinds.get(block_of(name, templates)))
            alike.setdefault(drawn, {}).setdefault(law, name)
    found = [attention_sites(traced) for traced in traces]
    for key, site in ((key, site) for sites in found for key, site in zip(names_of(sites), sites, strict=True)):
        scaled = ("The softmax scale", templates.of(key), site.head_dim, kinds.get(block_of(key, templates)))
        alike.setdefault(scaled, {}).setdefault((site.number, math.isnan(site.scale)), key)
    for (what, template, *_), differing in alike.items():
        if len(differing) > 1:
            one, other = list(differing.values())[:2]
            raise RoleError(
                f"{what} of {template!r} depends on the index of the block ({one!r} and {other!r} differ), so no base "
                "of another depth can stand for it. Make it the same in every block, or use a table of widths only."
            )


def _line(
    name: str, role: Assignment, depth: Factors, known: Base, placement: Placement, options: Options
) -> ParamPlan:
    """One parameter: the tables' cells at its own ratios, times its hyperparameters, seen through its fold."""
    table, optimizer, own = options.table, options.optimizer, options.hyperparameters
    base_law, law = _laws(name, role, known)
    constant = not base_law.centred
    row = table.row(role.role, constant=constant)
    rule = table.rule(role.role, optimizer, constant=constant)
    ratios = {"m_in": role.m_in, "m_out": role.m_out}
    fold = placement.folds.get(name, 1.0)
    if base_law.kind == "drawn" and constant and role.role in (Role.HIDDEN, Role.OUTPUT) and options.init == "rescale":
        raise RoleError(
            f"{name!r} is {role.role.value} and drawn around {base_law.mean:.3g}: multiplying it would scale its mean "
            "too, which no rule does. Draw it around 0, or give init='table'."
        )
    _refuse_width_in_constant(name, base_law, law, options)
    std = base_law.std * row.init_std.at(**ratios) * own.init_std.get(role.role, 1.0) * depth.init * fold
    return ParamPlan(
        name=name,
        shape=tuple(dim.size for dim in known.dims[name]),
        base_shape=tuple(dim.base for dim in known.dims[name]),
        role=role.role,
        uses=role.uses,
        fan_in=role.fan_in,
        m_in=role.m_in,
        m_out=role.m_out,
        init_law=law,
        base_law=base_law,
        init_std=base_law.std * fold if constant else std,
        init_factor=_init_factor(options, fold, std, law, placement.multipliers.get(name, 1.0)),
        multiplier=placement.multipliers.get(name, 1.0),
        fold=fold,
        carried=placement.carried.get(name, 1.0),
        lr=rule.lr.at(**ratios) * depth.lr * own.lr_of(name, role.role) * optimizer.lr_under(fold),
        eps=rule.eps.at(**ratios) * depth.eps * optimizer.eps_under(fold) if optimizer.has_eps else 1.0,
        weight_decay=rule.weight_decay.at(**ratios) * depth.weight_decay * optimizer.decay_under(fold),
        clip=_clip(table, role, row, constant) * fold,
        growing=tuple(axis for axis, dim in enumerate(known.dims[name]) if dim.grows),
        why=role.why + depth.why + placement.why.get(name, ""),
    )


def _refuse_width_in_constant(name: str, at_base: Law, here: Law, options: Options) -> None:
    constants = at_base.kind == here.kind == "constant" and math.isfinite(at_base.mean) and math.isfinite(here.mean)
    if options.init == "rescale" and constants and not math.isclose(at_base.mean, here.mean, abs_tol=1e-12):
        raise RoleError(
            f"{name!r} is filled with the constant {at_base.mean:.4g} at the base and {here.mean:.4g} here: no rule "
            "says how a constant goes with size. Fill it with one constant at every size, or draw it around 0."
        )


def _init_factor(options: Options, fold: float, std: float, law: Law, multiplier: float) -> float:
    """What a tensor's values are multiplied by; kept values only make up for a multiplier in the forward pass."""
    if options.init == "keep":
        return 1 / multiplier
    factor = std / law.std if law.centred else fold
    return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-12) else factor  # two roundings of one law are the same law


def _laws(name: str, role: Assignment, known: Base) -> tuple[Law, Law]:
    """The laws at the base and in the model; where nothing tells (init="table"), 1/sqrt(fan-in) at the base."""
    if name in known.laws:
        return known.laws[name], known.own_laws[name]
    if role.role in (Role.VECTOR, Role.SCALAR):
        return Law("constant"), Law("constant")
    base_fan_in = role.fan_in / role.m_in
    return Law("drawn", 1 / math.sqrt(base_fan_in), 0.0), Law("drawn", 1 / math.sqrt(role.fan_in), 0.0)


def _clip(table: Parameterization, role: Assignment, row: Row, constant: bool) -> float:
    """The multiplier in the family's gauge over the one here: how much larger a gradient is in the gauge."""
    gauge = table.gauge_of(role.role, constant=constant)
    return (gauge / row.multiplier).at(m_in=role.m_in, m_out=role.m_out)


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of each parameter -> its other names."""
    first: dict[int, str] = {}
    aliases: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        aliases.setdefault(owner, [])
        if owner != name:
            aliases[owner].append(name)
    return {name: tuple(others) for name, others in aliases.items()}


def _notes(lines: tuple[ParamPlan, ...], traced: Trace) -> list[str]:
    notes = []
    bent = [
        line.name
        for line in lines
        if (line.init_factor, line.fold, line.multiplier) != (1.0, 1.0, 1.0)
        and any(use.nonlinear for use in traced.uses[line.name])
    ]
    if bent:
        notes.append(
            f"{len(bent)} tensors go through a nonlinear function before they are used, which a factor on them does "
            f"not pass: {few(bent)}"
        )
    weighted = [line.name for line in lines if line.clip != 1.0 and not line.frozen]
    if weighted:
        notes.append(
            f"clip gradients with plan.clip_grad_norm_: torch's own would see those of {few(weighted)} "
            "larger or smaller with width"
        )
    mixed = [line.name for line in lines if "a*k + b" in line.why]
    if mixed:
        notes.append(f"{len(mixed)} tensors have a part that does not grow (a*k + b): {few(mixed)}")
    fixed = [line.name for line in lines if not line.growing and sum(size > 1 for size in line.shape) > 1]
    if fixed:
        notes.append(f"{len(fixed)} matrices do not grow with width: {few(fixed)}")
    unproven = [line.name for line in lines if "UNPROVEN" in line.why]
    if unproven:
        notes.append(f"{len(unproven)} roles are guesses (strict=False): {few(unproven)}")
    unreached = [line.name for line in lines if NOT_REACHED in line.why]
    if unreached:
        one = "1 tensor is" if len(unreached) == 1 else f"{len(unreached)} tensors are"
        notes.append(f"{one} not reached by the example inputs: {few(unreached)}")
    measured = [line.name for line in lines if line.init_law.measured and line.base_law.measured]
    if measured:
        notes.append(f"{len(measured)} init stds are measured, not read: {few(measured)}")
    return notes
