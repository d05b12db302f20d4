"""The softmax scale of every attention: what it is, what the table wants, and where it can be set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from mutransfer.errors import RoleError, ShapeError
from mutransfer.planning.data import AttentionPlan
from mutransfer.planning.graph import AttentionSite, attention_sites
from mutransfer.planning.ops import Trace
from mutransfer.rules.scale import Scale

_PROBE = 4.0
"""What an attribute is multiplied by to see whether it is a softmax scale; a power of two, so exactly."""


@dataclass(frozen=True)
class AttentionResult:
    """Attributes set on modules, and factors that query projections carry where no attribute is the scale."""

    set: tuple[AttentionPlan, ...]
    query_folds: Mapping[str, float]
    base_scales: Mapping[str, tuple[int, float]]
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
    keys = _keys(sites)
    if keys != list(base_scales):
        raise ShapeError(
            f"The base has {len(base_scales)} attentions and the model {len(sites)}, or in other modules: "
            "build both with one constructor and change only the width."
        )
    wanted = [_wanted(site, *base_scales[key], table, attn_mult) for key, site in zip(keys, sites, strict=True)]
    changing = [i for i, site in enumerate(sites) if not math.isclose(wanted[i], site.scale, rel_tol=1e-6)]
    attributes = _find_attributes(model, sites, retrace) if changing else {}
    plans: list[AttentionPlan] = []
    folds: dict[str, float] = {}
    for i in changing:
        site, factor = sites[i], wanted[i] / sites[i].scale
        why = f"softmax scale {site.scale:.4g} x {factor:.4g}"
        if i in attributes:
            attribute, power = attributes[i]
            value = float(getattr(model.get_submodule(site.module), attribute)) * factor**power
            base_head_dim = base_scales[keys[i]][0]
            plans.append(AttentionPlan(site.module, attribute, value, wanted[i], site.head_dim, base_head_dim, why))
        else:
            folds |= dict.fromkeys(_query_parameters(site, trace), factor)
    notes = (f"softmax scale carried by {', '.join(list(folds)[:3])}",) if folds else ()
    return AttentionResult(tuple(dict.fromkeys(plans)), folds, dict(base_scales), notes)


def scales_of(trace: Trace) -> dict[str, tuple[int, float]]:
    """Attention -> (head_dim, softmax scale); an attention's name is its module's path, with #2 for its second, ..."""
    sites = attention_sites(trace)
    return {key: (site.head_dim, site.scale) for key, site in zip(_keys(sites), sites, strict=True)}


def _keys(sites: Sequence[AttentionSite]) -> list[str]:
    seen: Counter[str] = Counter()
    keys = []
    for site in sites:
        seen[site.module] += 1
        keys.append(site.module if seen[site.module] == 1 else f"{site.module}#{seen[site.module]}")
    return keys


def _wanted(site: AttentionSite, base_head_dim: int, base_scale: float, table: Scale, attn_mult: float) -> float:
    return base_scale * table.at(m_head=site.head_dim / base_head_dim) * attn_mult


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
            power = round(math.log(new.scale / old.scale, _PROBE), 6)
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
    alone = all(len(trace.uses[name]) == 1 for name in site.queries)
    if site.queries and site.keys and alone and not set(site.queries) & set(site.keys):
        return site.queries
    raise RoleError(
        f"The softmax scale of {site.module!r} must change with head_dim, but no float attribute of that module sets "
        "it and its queries are fused with its keys. Keep head_dim fixed (scale='heads'), or let the module read its "
        "scale from a float attribute."
    )
