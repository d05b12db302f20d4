"""The proofs, made on the base, that what ends a branch can hold its multiplier, or the module that returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mutransfer.errors import ShapeError
from mutransfer.planning.branch_outputs import find_outputs
from mutransfer.planning.branches import Branch, find_branches, key_of
from mutransfer.planning.inputs import find_inputs
from mutransfer.planning.ops import Trace
from mutransfer.planning.rebuild import Build, has_config
from mutransfer.planning.shrink import shrink
from mutransfer.planning.sizes import without_memory
from mutransfer.planning.templates import Templates
from mutransfer.planning.trace_base import trace_base
from mutransfer.planning.verify import Verdict, verify

Key = tuple[str, ...]
MOST_VERIFIED = 2**25
"""Parameters of the largest base whose branches are tried in float64, forward and backward."""


@dataclass(frozen=True)
class Side:
    """One model's trace, evaluated, and its residual branches."""

    trace: Trace
    branches: tuple[Branch, ...]
    inputs: Any = None

    @classmethod
    def of(cls, traced: Trace, inputs: Any = None) -> Side:
        return cls(traced, find_branches(traced), inputs)


@dataclass(frozen=True)
class Proofs:
    """What was tried, by kind of branch.

    Attributes:
        why: why its terminal is not proven to be able to hold its multiplier; "" where it is.
        outputs: the module (a template) whose result is proven to be able to, where the terminal is not.
    """

    why: Mapping[Key, str]
    outputs: Mapping[Key, str] = field(default_factory=dict)


def prove(build: Build, base: Side, keys: set[Key], templates: Templates) -> Proofs:
    """Tries every branch of some kinds that the base has."""
    found = _small_enough(build, base)
    if found is None:
        big = f"a base of more than {MOST_VERIFIED:,} parameters is too large to try it, and could not be made smaller"
        return Proofs(dict.fromkeys(keys, big))
    model, tried = found
    chosen = [branch for branch in tried.branches if key_of(branch, templates) in keys]
    verdicts = verify(model, tried.inputs, chosen)
    failed = [v for v in verdicts if not v.verified]
    outputs = find_outputs(model, tried.inputs, tried.trace, [v.branch for v in failed]) if failed else {}
    why = {key_of(v.branch, templates): v.why for v in sorted(verdicts, key=lambda v: not v.verified)}
    return Proofs(why, _agreed(failed, outputs, templates))


def _agreed(failed: Sequence[Verdict], outputs: Mapping[int, str], templates: Templates) -> dict[Key, str]:
    """Kinds of which every branch that failed is returned by the same module of its block."""
    paths: dict[Key, set[str]] = {}
    for branch in (verdict.branch for verdict in failed):
        paths.setdefault(key_of(branch, templates), set()).add(templates.of(outputs.get(branch.number, "")))
    return {key: template for key, (template, *others) in paths.items() if template and not others}


def _small_enough(build: Build, base: Side) -> tuple[nn.Module, Side] | None:
    """The base with values, or where it is large, one of its kind that is cut to a small size: its blocks are alike."""
    module = without_memory(build)
    if sum(p.numel() for p in module.parameters()) <= MOST_VERIFIED:
        return build(), base
    if not has_config(module):
        return None
    make = type(module)

    def accept(config: Any) -> None:
        find_inputs(make(config), None)

    try:
        model = make(shrink(module.config, accept).config)
    except ShapeError:
        return None
    seen = trace_base(lambda: model, find_inputs(model, None), evaluated=True)
    return model, Side.of(seen.trace, seen.inputs)
