"""The proofs, made on the base, that what ends a branch can hold its multiplier, or the module that returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mutransfer.errors import ShapeError
from mutransfer.planning.branch_outputs import find_outputs
from mutransfer.planning.branches import key_of
from mutransfer.planning.inputs import find_inputs
from mutransfer.planning.rebuild import Build, has_config
from mutransfer.planning.shrink import shrink
from mutransfer.planning.sides import Key, Side, Sides
from mutransfer.planning.templates import Templates
from mutransfer.planning.trace_base import trace_base
from mutransfer.planning.verify import Verdict, verify

MOST_VERIFIED = 2**25
"""Parameters of the largest base whose branches are tried in float64, forward and backward."""


@dataclass(frozen=True)
class Proofs:
    """What was tried, by kind of branch.

    Attributes:
        why: why its terminal is not proven to be able to hold its multiplier; "" where it is.
        outputs: the module (a template) whose result is proven to be able to, where the terminal is not.
    """

    why: Mapping[Key, str]
    outputs: Mapping[Key, str] = field(default_factory=dict)


def prove(small: Side | None, sides: Sides, keys: set[Key], templates: Templates) -> Proofs:
    """Tries every branch of some kinds that the base has.

    Args:
        small: the base with values. See `small_enough`.
        sides: whose base's branches are asked for: the whole's, or a part's.
    """
    if small is None:
        big = f"a base of more than {MOST_VERIFIED:,} parameters is too large to try it, and could not be made smaller"
        return Proofs(dict.fromkeys(keys, big))
    tried = small.alone(sides.path, sides.base.inputs) if sides.path else small
    if tried is None:
        return Proofs(dict.fromkeys(keys, f"{sides.path!r} of a base small enough to try it does not run alone"))
    chosen = [branch for branch in tried.branches if key_of(branch, templates) in keys]
    verdicts = verify(tried.model, tried.inputs, chosen)
    failed = [v for v in verdicts if not v.verified]
    outputs = find_outputs(tried.model, tried.inputs, tried.trace, [v.branch for v in failed]) if failed else {}
    why = {key_of(v.branch, templates): v.why for v in sorted(verdicts, key=lambda v: not v.verified)}
    return Proofs(why, _agreed(failed, outputs, templates))


def _agreed(failed: Sequence[Verdict], outputs: Mapping[int, str], templates: Templates) -> dict[Key, str]:
    """Kinds of which every branch that failed is returned by the same module of its block."""
    paths: dict[Key, set[str]] = {}
    for branch in (verdict.branch for verdict in failed):
        paths.setdefault(key_of(branch, templates), set()).add(templates.of(outputs.get(branch.number, "")))
    return {key: template for key, (template, *others) in paths.items() if template and not others}


def small_enough(build: Build, base: Side) -> Side | None:
    """The base with values, or where it is large, one of its kind that is cut to a small size: its blocks are alike."""
    if sum(p.numel() for p in base.model.parameters()) <= MOST_VERIFIED:
        return replace(base, model=build(), build=None)
    if not has_config(base.model):
        return None
    make = type(base.model)

    def accept(config: Any) -> None:
        find_inputs(make(config), None)

    try:
        model = make(shrink(base.model.config, accept).config)
    except ShapeError:
        return None
    seen = trace_base(lambda: model, find_inputs(model, None), evaluated=True)
    return Side.of(model, seen.trace, seen.inputs)
