"""A tiny model of the same kind: any config's sizes, cut down together so that what was tied stays tied."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mutransfer.errors import ShapeError
from mutransfer.planning.fields import (
    MOST_STAGES,
    Field,
    Kind,
    Path,
    cache_switches,
    fields_of,
    items_of,
    kind_of,
    mapped,
    numbers,
    numbers_of_stages,
    unset_placeholders,
    with_values,
)
from mutransfer.planning.narrow import Sizes, inner_config, narrowed

__all__ = ["ATTEMPTS", "Shrunk", "Sizes", "shrink", "shrunk_values"]

Accept = Callable[[Any], None]
"""Raises whatever it likes for a config that is of no use."""


ATTEMPTS = (
    Sizes(),
    Sizes(patches=4),
    Sizes(patches=4, by_factor=True),
    Sizes(apart=False),
    Sizes(window=2, groups=4, patches=4),
    Sizes(width=128, patches=4, stage_depth=3),
    Sizes(width=128, patches=8, vocabulary=1024, positions=1024),
    Sizes(width=256, head_dim=64, patches=4),
    Sizes(width=256, head_dim=64, patches=4, vocabulary=1024, positions=1024),
    Sizes(width=256, head_dim=32, patches=8, vocabulary=1024, positions=1024, apart=False),
    Sizes(width=256, head_dim=128, patches=16, vocabulary=1024, positions=1024),
    Sizes(width=512, head_dim=64, patches=4, vocabulary=1024, positions=1024),
    Sizes(patches=4, fewer_heads=False),
    Sizes(width=192, patches=4, fewer_heads=False, stage_depth=3),
    Sizes(width=128, patches=64, vocabulary=1024, positions=1024),
)
"""Tried in order: from tiny to merely small, each with other ties kept."""
MOST_REPAIRS = 6
"""How many groups of fields are left as they were, by what the failures name, before an attempt is given up."""


@dataclass(frozen=True)
class Shrunk:
    """A tiny config, the attempt that made it, and the fields that had to stay."""

    config: Any
    sizes: Sizes
    kept: tuple[str, ...]


def shrink(config: Any, accept: Accept, attempts: Sequence[Sizes] = ATTEMPTS) -> Shrunk:
    """A tiny config that `accept` accepts: it builds, say, and its forward pass runs.

    Every attempt cuts all fields together. Where that fails, fields that the failure names are left as they were.

    Raises:
        ShapeError: no attempt is accepted; it carries the first failure.
    """
    failures: list[Exception] = []
    tried: list[dict[Path, Any]] = []
    for sizes in attempts:
        changes = shrunk_values(config, sizes)
        if changes in tried:  # a size that this config has nothing of
            continue
        tried.append(changes)
        try:
            return _repaired(config, changes, accept, sizes)
        except Exception as error:  # whatever a foreign constructor or forward pass raises
            failures.append(error)
    first = failures[0]
    raise ShapeError(
        f"No small proxy of {type(config).__name__} could be built by shrinking it ({type(first).__name__}: "
        f"{_first_line(first)}). Give factory=, a function from width to model."
    ) from first


def _repaired(config: Any, changes: Mapping[Path, Any], accept: Accept, sizes: Sizes) -> Shrunk:
    kept: list[str] = []
    remaining = dict(changes)
    for _ in range(MOST_REPAIRS):
        small = with_values(config, remaining)
        try:
            accept(small)
            return Shrunk(small, sizes, tuple(kept))
        except Exception as error:
            named = _named(str(error), remaining)
            if not named:
                raise
            kept += named
            remaining = {path: value for path, value in remaining.items() if path[-1] not in named}
    raise ShapeError("too many fields had to be kept")


def _named(message: str, changes: Mapping[Path, Any]) -> list[str]:
    """The changed fields that a failure's words contain."""
    words = set(re.findall(r"\w+", message))
    return sorted({path[-1] for path in changes if path[-1] in words and "_" in path[-1]})


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return " ".join(line.strip() for line in lines[:2])[:200] if lines else "no message"


def shrunk_values(config: Any, sizes: Sizes) -> dict[Path, Any]:
    """New values of all fields that a smaller model changes."""
    fields = list(fields_of(config))
    values = {field.path: _simple(field, sizes) for field in fields}
    values |= narrowed(config, fields, sizes)
    values |= _depths(fields, sizes)
    values |= _per_layer(config, fields, values)
    values |= _token_ids(config, fields, sizes) | _unset_top_k(config, fields)
    values |= _stage_names(config, values)
    old = {field.path: field.value for field in fields}
    changed = {path: value for path, value in values.items() if value is not None and value != old.get(path)}
    return changed | dict.fromkeys(cache_switches(config), False)


def _simple(field: Field, sizes: Sizes) -> Any:
    """Fields that are cut on their own."""
    limits = {
        Kind.VOCAB: sizes.vocabulary,
        Kind.POSITIONS: sizes.positions,
        Kind.QUERIES: sizes.queries,
        Kind.WINDOW: sizes.window,
        Kind.GROUPS: sizes.groups,
        Kind.GRID: sizes.patches,
        Kind.POOLED: (sizes.patches // 2) ** 2,
        Kind.EXPERTS: sizes.experts,
        Kind.TOP_K: 2,
        Kind.EXPERT_GROUPS: 1,
        Kind.PERIOD: 2,
        Kind.DENSE_LAYERS: 1,
        Kind.SHARED_LAYERS: 0,  # a layer of every kind that they read is more than a small stack may have
    }
    limit = limits.get(field.kind)
    return None if limit is None else mapped(field.value, lambda size: min(size, limit))


# Depth


def _depths(fields: Sequence[Field], sizes: Sizes) -> dict[Path, Any]:
    """Every stack to a few layers, its lists cut to the same, one layer of each kind kept where there are kinds."""
    values: dict[Path, Any] = {}
    for owner in dict.fromkeys(field.owner for field in fields):
        here = [field for field in fields if field.owner == owner]
        lists = [f for f in here if f.kind is Kind.LAYER_LIST and isinstance(f.value, list | tuple)]
        indices = [f for f in here if f.kind is Kind.LAYER_INDEX]
        kept = _kept_layers(lists, indices, sizes)
        stages = numbers_of_stages(here)
        for field in here:
            if field.kind is Kind.DEPTH and (isinstance(field.value, list | tuple) or field.value not in stages):
                values[field.path] = _fewer_layers(field.value, len(kept), sizes)
        for field in lists:
            length = len(field.value)
            chosen = [i for i in kept if i < length] if length > len(kept) else range(length)
            values[field.path] = type(field.value)(field.value[i] for i in chosen)
        for field in (f for f in here if f.kind is Kind.LAYER_SOURCE):  # the first layers read none but themselves
            values[field.path] = field.value[: len(kept)]
        staged = next((f for f in here if f.kind is Kind.DEPTH and isinstance(f.value, list | tuple)), None)
        for field in (f for f in indices if f.name != "_out_indices"):  # goes with its names, below
            if staged is not None and _count_blocks(field, staged):
                values[field.path] = _in_stages(field.value, staged.value, values[staged.path])
            else:
                values[field.path] = _fewer_indices(field.value, len(kept))
    return values


def _per_layer(config: Any, fields: Sequence[Field], values: Mapping[Path, Any]) -> dict[Path, Any]:
    """Every other list with an entry per layer, cut with the number of layers: a width of each, say."""
    cut: dict[Path, Any] = {}
    for field in fields:
        fewer = values.get(field.path)
        if field.kind is not Kind.DEPTH or not isinstance(fewer, int) or fewer >= field.value:
            continue
        for name, own in items_of(inner_config(config, field.owner)).items():
            path = (*field.owner, name)
            value = values.get(path) or own
            if isinstance(value, list | tuple) and len(value) == field.value > MOST_STAGES:
                cut[path] = type(value)(value[:fewer])
    return cut


def _fewer_layers(value: Any, depth: int, sizes: Sizes) -> Any:
    """At most `depth`; in many stages, fewer."""
    if isinstance(value, list | tuple) and len(value) > 2:
        return mapped(value, lambda v: min(v, sizes.stage_depth))
    return mapped(value, lambda v: min(v, depth))


def _kept_layers(lists: Sequence[Field], indices: Sequence[Field], sizes: Sizes) -> list[int]:
    """The first layer of each kind, then the next ones."""
    wanted = max([sizes.depth, *(len(f.value) for f in indices if isinstance(f.value, list | tuple))])
    wanted = min(wanted, sizes.most_layers)
    length = max((len(f.value) for f in lists), default=0)
    kinds: dict[Any, int] = {}
    for i in range(length):
        kinds.setdefault(tuple(repr(f.value[i]) for f in lists if i < len(f.value)), i)
    firsts = sorted(kinds.values())[: sizes.most_layers]
    rest = [i for i in range(max(length, wanted)) if i not in firsts]
    return sorted([*firsts, *rest[: max(0, wanted - len(firsts))]])


def _fewer_indices(value: Any, depth: int) -> Any:
    """Indices of layers that exist: by rank where all fit, else those that are small enough."""
    if isinstance(value, int):
        return value if -depth <= value < depth else (depth - 1 if value > 0 else -1)
    numbers = [v for v in value if isinstance(v, int)]
    if len(numbers) != len(value) or all(-depth <= v < depth for v in numbers):
        return value
    if len(numbers) <= depth:
        return type(value)(depth - len(numbers) + rank for rank in range(len(numbers)))
    return type(value)(v for v in numbers if v < depth) or type(value)([depth - 1])


def _count_blocks(indices: Field, staged: Field) -> bool:
    """Whether indices count the blocks of all stages: some are above the number of stages."""
    known = all(isinstance(depth, int) for depth in staged.value)
    return known and isinstance(indices.value, list | tuple) and max(numbers(indices.value)) > len(staged.value)


def _in_stages(indices: Any, depths: Sequence[int], fewer: Sequence[int]) -> Any:
    """Blocks stay at their place in their stage: the first of one is of another kind. Those that are cut off go."""
    starts, new = ([sum(of[:stage]) for stage in range(len(of))] for of in (depths, fewer))
    places = [(start, depth, at) for start, depth, at in zip(starts, fewer, new, strict=True)]
    found = (at + i - start for start, depth, at in places for i in indices if start <= i < start + depth)
    return type(indices)(found)


def _stage_names(config: Any, values: Mapping[Path, Any]) -> dict[Path, Any]:
    """A backbone that returns some layers keeps their indices beside their names, the first of them its input's."""
    named: dict[Path, Any] = {}
    for path, depth in values.items():
        inner = inner_config(config, path[:-1])
        names, indices = (getattr(inner, name, None) for name in ("stage_names", "_out_indices"))
        if names and indices and path[-1] == "num_hidden_layers" and inner.num_hidden_layers == len(names) - 1:
            fewer = _fewer_indices(list(indices), depth + 1)
            named[(*path[:-1], "stage_names")] = names[: depth + 1]
            named[(*path[:-1], "_out_indices")] = fewer
            named[(*path[:-1], "_out_features")] = [names[i] for i in fewer]
    return named


def _unset_top_k(config: Any, fields: Sequence[Field]) -> dict[Path, Any]:
    """Experts per token, where a config has experts but leaves that number out."""
    owners = {field.owner for field in fields if field.kind is Kind.EXPERTS and max(numbers(field.value)) > 1}
    own = [(owner, name, value) for owner in owners for name, value in items_of(inner_config(config, owner)).items()]
    return {(*owner, name): 2 for owner, name, value in own if value is None and kind_of(name) is Kind.TOP_K}


# Token ids


def _token_ids(config: Any, fields: Sequence[Field], sizes: Sizes) -> dict[Path, Any]:
    """Ids above the vocabulary become the highest ones in it: equal ones stay equal, different ones different. One that
    stands for an image or a sound and is not set gets an id."""
    ids = sorted({v for f in fields if f.kind is Kind.TOKEN_ID for v in numbers(f.value) if v >= sizes.vocabulary // 2})
    taken = {v for f in fields if f.kind is Kind.TOKEN_ID for v in numbers(f.value) if v < sizes.vocabulary // 2}
    free = [i for i in range(sizes.vocabulary - 1, 0, -1) if i not in taken]
    moved = {v: free[i % len(free)] for i, v in enumerate(reversed(ids))}
    unset = {path: free[(len(ids) + i) % len(free)] for i, path in enumerate(unset_placeholders(config))}
    return unset | {f.path: mapped(f.value, lambda v: moved.get(v, v)) for f in fields if f.kind is Kind.TOKEN_ID}
