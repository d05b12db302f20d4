"""The softmax scale of every attention: what it is, what the table wants, and where it can be set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from mutransfer.errors import RoleError, ShapeError, few
from mutransfer.planning.carriers import Graph, Target, carriers, record
from mutransfer.planning.data import AttentionPlan, Rows
from mutransfer.planning.forward import names_of
from mutransfer.planning.ops import Trace
from mutransfer.planning.sites import AttentionSite, attention_sites
from mutransfer.planning.trace import trace
from mutransfer.rules.scale import Scale

_PROBE = 4.0
"""What an attribute is multiplied by to see whether it is a softmax scale; a power of two, so exactly."""


@dataclass(frozen=True)
class Carried:
    """A factor on an attention's logits, on a parameter, or on some of its rows, that makes its queries (or keys)."""

    parameter: str
    factor: float
    rows: Rows | None


@dataclass(frozen=True)
class AttentionResult:
    """Attributes set on modules, and factors that parameters carry where no attribute is the scale."""

    set: tuple[AttentionPlan, ...]
    carried: tuple[Carried, ...]
    notes: tuple[str, ...]


def plan_attention(
    model: nn.Module,
    traced: Trace,
    inputs: Sequence[Any] | Mapping[str, Any],
    base_scales: Mapping[str, tuple[int, float]],
    table: Scale,
    attn_mult: float,
    *,
    by_config: bool,
) -> AttentionResult:
    """Brings every softmax scale to `base scale * table(m_head) * attn_mult`.

    Where that is what the model already does (head_dim fixed, say), nothing is touched. Else an attribute of the
    module is set that was proven to be the scale by changing it and tracing again; else the parameters carry the factor
    that make the queries, or the keys, and nothing else: of a fused projection those rows alone.

    Args:
        inputs: that the model was traced on.
        base_scales: attention -> (head_dim, softmax scale) at the base.
        by_config: head_dim grows because the user asked for scale="head_dim".

    Raises:
        ShapeError: base and model differ in their attentions.
        RoleError: a scale that must change but cannot be set.
    """
    sites = attention_sites(traced)
    if attn_mult != 1.0 and not sites:
        raise RoleError(
            "attn_mult is given, but no softmax over a product of activations with a readable scale was found in the "
            "model. Leave it at 1, or let the attention take its scale from a Python number."
        )
    keys = names_of(sites)
    if keys != list(base_scales):
        raise ShapeError(
            f"The base has {len(base_scales)} attentions and the model {len(sites)}, or in other modules: "
            "build both with one constructor and change only the width."
        )
    factors = [
        _factor(site, *base_scales[key], table, attn_mult, by_config=by_config)
        for key, site in zip(keys, sites, strict=True)
    ]
    changing = {i: factor for i, factor in enumerate(factors) if not math.isclose(factor, 1.0, rel_tol=1e-6)}
    attributes = _find_attributes(model, sites, inputs) if changing else {}
    plans = [
        _attribute_plan(model, sites[i], *attributes[i], factor, base_scales[keys[i]][0])
        for i, factor in changing.items()
        if i in attributes
    ]
    rest = {i: factor for i, factor in changing.items() if i not in attributes}
    carried, reasons = carry(record(model, inputs), rest) if rest else ((), {})
    for i, reason in reasons.items():
        raise RoleError(_refusal(sites[i], base_scales[keys[i]][0], reason, by_config=by_config))
    return AttentionResult(tuple(dict.fromkeys(plans)), carried, _notes(carried))


def _attribute_plan(
    model: nn.Module, site: AttentionSite, attribute: str, power: int, factor: float, base_head_dim: int
) -> AttentionPlan:
    value = float(getattr(model.get_submodule(site.module), attribute)) * factor**power
    why = f"softmax scale {site.scale:.4g} x {factor:.4g}"
    return AttentionPlan(site.module, attribute, value, site.scale * factor, site.head_dim, base_head_dim, why)


def _notes(carried: Sequence[Carried]) -> tuple[str, ...]:
    names = list(dict.fromkeys(one.parameter for one in carried))
    return (f"softmax scale carried by {few(names)}",) if names else ()


def carry(graph: Graph, factors: Mapping[int, float]) -> tuple[tuple[Carried, ...], Mapping[int, str]]:
    """The parameters that carry a factor on the logits of attentions, and why there are none for the others.

    Args:
        graph: of the model.
        factors: index of an attention, as in `attention_sites` -> the factor.
    """
    sites = attention_sites(graph.trace)
    carried: dict[Carried, None] = {}
    reasons: dict[int, str] = {}
    done: set[int] = set()
    for i, factor in factors.items():
        if i in done:
            continue
        alike = [j for j, other in factors.items() if other == factor and j not in done]
        tried = []
        for what, target in _targets(sites[i]).items():
            names = graph.makers(target.value)
            targets = {j: _targets(sites[j])[what] for j in alike if what in _targets(sites[j])}
            targets = {j: other for j, other in targets.items() if graph.makers(other.value) == names}
            found = carriers(graph, targets.values(), names)
            if not isinstance(found, str):
                carried |= {Carried(name, factor, rows): None for name, rows in found.items()}
                done |= set(targets)
                break
            tried.append(f"no parameter makes its {what} and nothing else ({found})")
        else:
            reasons[i] = tried[-1 if sites[i].temperatures else 0]
    return tuple(carried), reasons


def _targets(site: AttentionSite) -> dict[str, Target]:
    """What a factor on the logits may be put into."""
    own = {"queries": Target(site.product, site.queries), "keys": Target(site.product, site.keys)}
    return own | {f"temperature {i}": Target(*one) for i, one in enumerate(site.temperatures, 1)}


def _refusal(site: AttentionSite, base_head_dim: int, reason: str, *, by_config: bool) -> str:
    cause = "must change with head_dim" if site.head_dim != base_head_dim else "is to be multiplied by attn_mult"
    return (
        f"The softmax scale of {site.module!r} {cause}, but no float attribute of that module sets it, and {reason}. "
        f"{_advice(site, base_head_dim, by_config=by_config)}, or let the module read its scale from a float attribute."
    )


def _advice(site: AttentionSite, base_head_dim: int, *, by_config: bool) -> str:
    if site.head_dim == base_head_dim:
        return "Leave attn_mult at 1"
    if by_config:
        return "Keep head_dim fixed (scale='heads')"
    return f"Let more heads come with the width, not larger ones ({base_head_dim} at the base, {site.head_dim} here)"


def _factor(
    site: AttentionSite, base_head_dim: int, base_scale: float, table: Scale, attn_mult: float, *, by_config: bool
) -> float:
    """What the model's own softmax scale is to be multiplied by.

    Raises:
        RoleError: head_dim grows and the scale is no number that can be read.
    """
    m_head = 1.0 if site.unit else site.head_dim / base_head_dim
    if math.isfinite(site.scale) and math.isfinite(base_scale):
        return base_scale * table.at(m_head=m_head) * attn_mult / site.scale
    if m_head == 1.0:
        return attn_mult
    raise RoleError(
        f"The softmax scale of {site.module!r} must change with head_dim ({base_head_dim} at the base, {site.head_dim} "
        "here), but it is held in a tensor (a learned temperature, say), so it cannot be read. "
        f"{_advice(site, base_head_dim, by_config=by_config)}, or let the module read its scale from a Python number."
    )


def _find_attributes(
    model: nn.Module, sites: Sequence[AttentionSite], inputs: Sequence[Any] | Mapping[str, Any]
) -> dict[int, tuple[str, int]]:
    """Attention's index -> (attribute, its power in the scale: 1, or -1 for a divisor), proven by perturbation."""
    modules = {site.module: model.get_submodule(site.module) for site in sites}
    candidates = dict.fromkeys(name for module in modules.values() for name in _scales(module))
    found: dict[int, tuple[str, int]] = {}
    for name in candidates:
        with _perturbed([m for m in modules.values() if name in _scales(m)], name):
            after = _sites_if_it_runs(model, inputs)
        if len(after) != len(sites):
            continue
        for i, (old, new) in enumerate(zip(sites, after, strict=True)):
            change = new.scale / old.scale
            power = round(math.log(change, _PROBE), 6) if math.isfinite(change) else 0
            if power in (1, -1) and i not in found:
                found[i] = (name, int(power))
    return found


def _sites_if_it_runs(model: nn.Module, inputs: Sequence[Any] | Mapping[str, Any]) -> list[AttentionSite]:
    """A number that is not a scale may be a size, and the model not run with another."""
    try:
        return attention_sites(trace(model, inputs))
    except RoleError:
        return []


def _scales(module: nn.Module) -> list[str]:
    """Attributes that may be a softmax scale. A whole number is a size, but for a scale of 1."""
    return [
        name
        for name, value in vars(module).items()
        if (type(value) is float and value != 0) or (type(value) is int and value == 1 and "scal" in name)
    ]


@contextmanager
def _perturbed(modules: Sequence[nn.Module], name: str) -> Iterator[None]:
    before = [getattr(module, name) for module in modules]
    try:
        for module, value in zip(modules, before, strict=True):
            setattr(module, name, value * _PROBE)
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            setattr(module, name, value)
