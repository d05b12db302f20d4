"""What is asked of one model in depth: which branches repeat, can their terminals be proven, does CompleteP convert?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import mutransfer as mt
from mutransfer.check.batches import Generated
from mutransfer.errors import ShapeError
from mutransfer.planning.branches import find_branches, key_of, repeating
from mutransfer.planning.sizes import Shapes, shapes_of, without_memory
from mutransfer.planning.stacks import compare_depths
from mutransfer.planning.trace import trace
from mutransfer.planning.verify import verify
from zoo.subjects import Small

TIMES = (1, 2, 4, 8)
Column = Callable[[dict[str, Any], str, Callable[[], dict[str, Any]]], None]


def depth_columns(small: Small, row: dict[str, Any], column: Column) -> None:
    """Kinds of residual branches that repeat, how many of them are verified, and whether CompleteP converts."""
    column(row, "branches", lambda: _branches(with_every_block(small)))
    if row["branches"] is not False and row["branches"] > 0:
        column(row, "completep", lambda: _completep(with_every_block(small)))


def with_every_block(small: Small) -> Small:
    """At the smallest depth whose blocks are of all kinds that a deeper model has: the last of a stage may differ."""
    assert small.deep is not None
    for depth in (small.depth, 2 * small.depth, 4 * small.depth):
        with suppress(ShapeError):
            base, deeper = (_shapes(small, d) for d in (depth, 2 * depth))
            if all(deeper[name] == base[partner] for name, partner in compare_depths(base, deeper).partners.items()):
                return replace(small, depth=depth)
    return small


def _shapes(small: Small, depth: int) -> Shapes:
    assert small.deep is not None
    try:
        return shapes_of(without_memory(lambda: small.deep(small.width, depth)))  # type: ignore[misc]
    except Exception as error:  # whatever a foreign constructor raises
        raise ShapeError(f"It cannot be built {depth} times as deep: {type(error).__name__}: {error}") from error


def _branches(small: Small) -> dict[str, Any]:
    assert small.deep is not None
    inputs = small.inputs(0)
    base, deeper = (small.deep(small.width, small.depth * k).eval() for k in (1, 2))
    one, two = trace(base, inputs), trace(deeper, inputs)
    templates = compare_depths(one.uses, two.uses).templates
    keys = {key_of(b, templates) for b in repeating(find_branches(one), find_branches(two), templates)}
    verdicts = verify(base, inputs, [b for b in find_branches(one) if key_of(b, templates) in keys])
    proven = {key_of(v.branch, templates): not v.why for v in verdicts}
    unproven = next((f"{v.branch.module}: {v.why}" for v in verdicts if v.why), "")
    found = {"base_depth": small.depth, "branches": len(keys)}
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
    small = with_every_block(small)
    return mt.coord_check(
        small.deep,
        widths=[small.width],
        depths=[small.depth * k for k in TIMES],
        parameterization="completep",
        batches=lambda seed: Generated(small.inputs(seed), seed),
        example_inputs=small.inputs(0),
    )
