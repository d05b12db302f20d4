"""What is asked of one model in depth: which branches repeat, can their terminals be proven, does CompleteP convert?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import mutransfer as mt
from mutransfer.check.batches import Generated
from mutransfer.errors import ShapeError
from mutransfer.planning.branches import Branch, find_branches, key_of, repeating
from mutransfer.planning.fields import Path
from mutransfer.planning.parts import reached_by
from mutransfer.planning.sides import Side, Sides, apart
from mutransfer.planning.sizes import Shapes, shapes_of, without_memory
from mutransfer.planning.stacks import compare_depths
from mutransfer.planning.templates import Templates
from mutransfer.planning.trace import trace
from mutransfer.planning.verify import verify
from zoo.subjects import Deeper, Small

TIMES = (1, 2, 4, 8)
Column = Callable[[dict[str, Any], str, Callable[[], dict[str, Any]]], None]


def depth_columns(small: Small, row: dict[str, Any], column: Column) -> None:
    """Kinds of residual branches that repeat, how many of them are verified, and whether CompleteP converts."""

    @functools.cache
    def prepared() -> Small:
        return with_every_block(of_residual_stacks(small))

    column(row, "branches", lambda: _branches(prepared()))
    if row["branches"] is not False and row["branches"] > 0:
        column(row, "completep", lambda: _completep(prepared()))


def of_residual_stacks(small: Small) -> Small:
    """Less deep where layers stand in a row and nothing is summed (an MLP, a recurrent predictor beside an encoder):
    depth rules are for residual stacks, and a user who wants them makes those deeper."""
    deep = small.deep
    if not isinstance(deep, Deeper) or len(deep.counts) < 2:
        return small
    parts = _parts(small)
    kept = frozenset(path for path in deep.counts if _in_a_row(small, deep, path, parts))
    return replace(small, deep=replace(deep, kept=kept)) if kept < deep.counts else small


def _parts(small: Small) -> tuple[Sides, ...]:
    """The model and one twice as deep, and what their inputs do not reach of them by itself."""
    assert small.deep is not None
    inputs = small.inputs(0)
    models = [small.deep(small.width, small.depth * k).eval() for k in (1, 2)]
    whole = Sides(*(Side.of(model, trace(model, inputs), inputs) for model in models))
    with suppress(ShapeError):
        return apart(whole, compare_depths(whole.base.trace.uses, whole.own.trace.uses).templates)
    return (whole,)


def _in_a_row(small: Small, deep: Deeper, path: Path, parts: Sequence[Sides]) -> bool:
    """Whether a number of layers counts blocks that the inputs reach, and none that adds to a stream, at neither of two
    depths: the first block of a stage may be the one that does not."""
    alone = replace(small, deep=replace(deep, kept=deep.counts - {path}))
    try:
        stacks = compare_depths(_shapes(small, small.depth), _shapes(alone, 2 * small.depth))
    except ShapeError:
        return False
    stack_of = stacks.templates.stack
    sides = [side for part in parts for side in (part.base, part.own)]
    reached = {stack_of(name) for side in sides for name in reached_by(side.trace)}
    branches = (branch for side in sides for branch in side.branches)
    adding = {stack_of(name) for branch in branches for name in (branch.module, *branch.terminals)}
    return not reached.isdisjoint(stacks.deeper) and adding.isdisjoint(stacks.deeper)


def with_every_block(small: Small) -> Small:
    """At the smallest depth whose blocks, and their branches, are of all kinds that a deeper model has: the last of a
    stage may differ, and the first ones of a stack."""
    assert small.deep is not None
    for depth in (small.depth, 2 * small.depth, 4 * small.depth):
        with suppress(ShapeError):
            base, deeper = (_shapes(small, d) for d in (depth, 2 * depth))
            alike = all(deeper[n] == base[partner] for n, partner in compare_depths(base, deeper).partners.items())
            if alike and _has_every_branch(replace(small, depth=depth)):
                return replace(small, depth=depth)
    return small


def _has_every_branch(small: Small) -> bool:
    (base, deeper), templates = _traced(small)
    known = {key_of(branch, templates) for branch in base}
    return all(key_of(branch, templates) in known for branch in repeating(base, deeper, templates))


def _traced(small: Small) -> tuple[list[tuple[Branch, ...]], Templates]:
    """The branches of the model and of one twice as deep, and how their names are read."""
    assert small.deep is not None
    models = [small.deep(small.width, small.depth * k).eval() for k in (1, 2)]
    traces = [trace(model, small.inputs(0)) for model in models]
    return [find_branches(found) for found in traces], compare_depths(*(found.uses for found in traces)).templates


def _shapes(small: Small, depth: int) -> Shapes:
    assert small.deep is not None
    try:
        return shapes_of(without_memory(lambda: small.deep(small.width, depth)))  # type: ignore[misc]
    except Exception as error:  # whatever a foreign constructor raises
        raise ShapeError(f"It cannot be built {depth} times as deep: {type(error).__name__}: {error}") from error


def _branches(small: Small) -> dict[str, Any]:
    assert small.deep is not None
    (base, deeper), templates = _traced(small)
    keys = {key_of(b, templates) for b in repeating(base, deeper, templates)}
    model = small.deep(small.width, small.depth).eval()
    verdicts = verify(model, small.inputs(0), [b for b in base if key_of(b, templates) in keys])
    proven = {key_of(v.branch, templates): not v.why for v in verdicts}
    unproven = next((f"{v.branch.module}: {v.why}" for v in verdicts if v.why), "")
    found: dict[str, Any] = {"base_depth": small.depth, "branches": len(keys)}
    if isinstance(small.deep, Deeper) and small.deep.kept:
        found["in_a_row"] = sorted(map(".".join, small.deep.kept))
    return found | {"terminals": sum(proven.values()), "terminals_reason": unproven}


def _completep(small: Small) -> dict[str, Any]:
    assert small.deep is not None
    mt.plan(
        small.deep(2 * small.width, 2 * small.depth),
        "completep",
        base=small.width,
        base_depth=small.depth,
        factory=small.deep,
        example_inputs=small.inputs_at(2 * small.width),
    )
    return {"completep": True}


def depth_check(small: Small) -> Any:
    """The coordinate check over depths, under CompleteP with AdamW."""
    small = with_every_block(of_residual_stacks(small))
    return mt.coord_check(
        small.deep,
        widths=[small.width],
        depths=[small.depth * k for k in TIMES],
        parameterization="completep",
        batches=lambda seed: Generated(small.inputs(seed), seed),
        example_inputs=small.inputs(0),
    )
