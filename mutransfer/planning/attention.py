"""The softmax scale of every attention: what it is, what the table wants, and where it can be set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from mutransfer.errors import RoleError, ShapeError
from mutransfer.planning.data import AttentionPlan
from mutransfer.planning.forward import names_of
from mutransfer.planning.ops import Trace
from mutransfer.planning.sites import AttentionSite, attention_sites
from mutransfer.rules.scale import Scale

_PROBE = 4.0
"""What an attribute is multiplied by to see whether it is a softmax scale; a power of two, so exactly."""


@dataclass(frozen=True)
class AttentionResult:
    """Attributes set on modules, and factors that query projections carry where no attribute is the scale."""

    set: tuple[AttentionPlan, ...]
    query_folds: Mapping[str, float]
    notes: tuple[str, ...]


def plan_attention(
    model: nn.Module,
    trace: Trace,
    retrace: Callable[[], Trace],
    base_scales: Mapping[str, tuple[int, float]],
    table: Scale,
    attn_mult: float,
) -> AttentionResult:
    """Brings every softmax scale to `base scale * table(m_head) * attn_mult`.

    Where that is what the model already does (head_dim fixed, say), nothing is touched. Else an attribute of the
    module is set that was proven to be the scale by changing it and tracing again; else the query projections carry
    the factor, where they are not fused with the keys'.

    Raises:
        ShapeError: base and model differ in their attentions.
        RoleError: a scale that must change but cannot be set.
    """
    sites = attention_sites(trace)
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
    factors = [_factor(site, *base_scales[key], table, attn_mult) for key, site in zip(keys, sites, strict=True)]
    changing = [i for i, factor in enumerate(factors) if not math.isclose(factor, 1.0, rel_tol=1e-6)]
    attributes = _find_attributes(model, sites, retrace) if changing else {}
    plans: list[AttentionPlan] = []
    folds: dict[str, float] = {}
    for i in changing:
        site, factor = sites[i], factors[i]
        why = f"softmax scale {site.scale:.4g} x {factor:.4g}"
        if i in attributes:
            attribute, power = attributes[i]
            value = float(getattr(model.get_submodule(site.module), attribute)) * factor**power
            head_dim = base_scales[keys[i]][0]
            plans.append(
                AttentionPlan(site.module, attribute, value, site.scale * factor, site.head_dim, head_dim, why)
            )
        else:
            folds |= dict.fromkeys(_query_parameters(site, trace), factor)
    notes = (f"softmax scale carried by {', '.join(list(folds)[:3])}",) if folds else ()
    return AttentionResult(tuple(dict.fromkeys(plans)), folds, notes)


def _factor(site: AttentionSite, base_head_dim: int, base_scale: float, table: Scale, attn_mult: float) -> float:
    """What the model's own softmax scale is to be multiplied by.

    Raises:
        RoleError: head_dim grows and the scale is no number that can be read.
    """
    if math.isfinite(site.scale) and math.isfinite(base_scale):
        return base_scale * table.at(m_head=site.head_dim / base_head_dim) * attn_mult / site.scale
    if site.head_dim == base_head_dim:
        return attn_mult
    raise RoleError(
        f"The softmax scale of {site.module!r} must change with head_dim ({base_head_dim} at the base, {site.head_dim} "
        "here), but it is held in a tensor (a learned temperature, say), so it cannot be read. Keep head_dim fixed "
        "(scale='heads'), or let the module read its scale from a Python number."
    )


def _find_attributes(
    model: nn.Module, sites: Sequence[AttentionSite], retrace: Callable[[], Trace]
) -> dict[int, tuple[str, int]]:
    """Attention's index -> (attribute, its power in the scale: 1, or -1 for a divisor), proven by perturbation."""
    modules = {site.module: model.get_submodule(site.module) for site in sites}
    candidates = dict.fromkeys(name for module in modules.values() for name in _float_attributes(module))
    found: dict[int, tuple[str, int]] = {}
    for name in candidates:
        with _perturbed([m for m in modules.values() if name in _float_attributes(m)], name):
            after = attention_sites(retrace())
        for i, (old, new) in enumerate(zip(sites, after, strict=True)):
            change = new.scale / old.scale
            power = round(math.log(change, _PROBE), 6) if math.isfinite(change) else 0
            if power in (1, -1) and i not in found:
                found[i] = (name, int(power))
    return found


def _float_attributes(module: nn.Module) -> list[str]:
    return [name for name, value in vars(module).items() if type(value) is float and value != 0]


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


def _query_parameters(site: AttentionSite, trace: Trace) -> tuple[str, ...]:
    """The parameters that can carry a factor on the logits: they set the size of the queries, and of nothing else."""
    shared = next((name for name in site.queries if len(trace.uses[name]) != 1), None)
    if not site.queries or not site.keys:
        reason = "what sets the size of its queries or keys could not be found"
    elif set(site.queries) & set(site.keys):
        reason = "its queries are fused with its keys"
    elif shared is not None:
        reason = f"{shared!r}, which makes its queries, is used elsewhere too"
    else:
        return site.queries
    raise RoleError(
        f"The softmax scale of {site.module!r} must change with head_dim, but no float attribute of that module sets "
        f"it and {reason}. Keep head_dim fixed (scale='heads'), or let the module read its scale from a float "
        "attribute."
    )
