"""Depth in a config: the fields that count layers, and the lists with an entry per layer that follow them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mutransfer.errors import ConfigError, nearest
from mutransfer.planning.fields import MOST_STAGES, Field, Kind, Path, depth_fields, fields_of, items_of
from mutransfer.planning.resize import path_of, value_at


def is_depth(path: Path, config: Any) -> bool:
    """Whether a field of a config counts layers or has an entry per layer."""
    return path in {field.path for field in depth_fields(config)}


def depth_values(config: Any, depth: int | Mapping[str, Any]) -> dict[Path, Any]:
    """The values of a config's depth fields at another depth: one number for all stacks, or one per field.

    Raises:
        ConfigError: no such field, one number for stacks of several depths, or no number of layers.
    """
    counts = [field for field in depth_fields(config) if field.kind is Kind.DEPTH]
    if not counts:
        raise ConfigError(
            f"{type(config).__name__} has no field known as a number of layers. Give factory=, a function from width "
            "and depth to model, or base= as a model."
        )
    chosen = _named(config, counts, depth) if isinstance(depth, Mapping) else _all(config, counts, depth)
    return with_lists(config, chosen)


def twice_as_deep(config: Any) -> dict[Path, Any]:
    counts = [field for field in depth_fields(config) if field.kind is Kind.DEPTH]
    return with_lists(config, {field.path: _times(field.value, 2) for field in counts})


def with_lists(config: Any, counts: Mapping[Path, Any]) -> dict[Path, Any]:
    """The numbers of layers, and beside each one all lists with an entry per layer (their kinds, their widths, the one
    whose keys they read): cut, or begun anew."""
    values = dict(counts)
    known = {field.path: field for field in fields_of(config)}
    for path, count in counts.items():
        own = known[path].value if path in known else None
        if not isinstance(own, int) or not isinstance(count, int):
            continue
        beside = {(*path[:-1], name): value for name, value in items_of(value_at(config, path[:-1])).items()}
        lists = {at: value for at, value in beside.items() if isinstance(value, list | tuple) and len(value) == own}
        of_layers = any(at in known and known[at].kind is Kind.LAYER_LIST for at in lists)
        for at, value in lists.items():
            if at in known and known[at].kind is Kind.LAYER_SOURCE:
                values[at] = _sources(value, count)
            elif _per_layer(at, known.get(at), value, certain=of_layers or own > MOST_STAGES):
                values[at] = of_length(value, count)
    return values


def _per_layer(path: Path, field: Field | None, value: Sequence[Any], *, certain: bool) -> bool:
    """Whether a list as long as there are layers has an entry for each, rather than one per stage, or indices."""
    if field is not None and field.kind in (Kind.LAYER_LIST, Kind.LAYER_INDEX, Kind.TOKEN_ID):
        return field.kind is Kind.LAYER_LIST
    certain = certain or path[-1].endswith("_per_layer")
    return certain and all(isinstance(entry, int | float) for entry in value)


def of_length(entries: Sequence[Any], length: int) -> Any:
    """The first entries of a list; where there are fewer, begun anew."""
    repeated = list(entries) * (length // len(entries) + 1)
    return type(entries)(repeated[:length])  # type: ignore[call-arg]


def _sources(entries: Sequence[Any], length: int) -> Any:
    """Layers that layers read: in what is begun anew they stand as far behind as before."""
    shifted = (entry + i // len(entries) * len(entries) for i, entry in enumerate(of_length(entries, length)))
    return type(entries)(shifted)  # type: ignore[call-arg]


def _times(value: Any, k: int) -> Any:
    return type(value)(_times(v, k) for v in value) if isinstance(value, list | tuple) else value * k


def _all(config: Any, counts: Sequence[Field], depth: Any) -> dict[Path, Any]:
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ConfigError(f"base_depth={depth!r} must be a number of layers, a positive whole number.")
    if len({repr(field.value) for field in counts}) > 1 or not isinstance(counts[0].value, int):
        known = ", ".join(f"{'.'.join(field.path)} = {field.value}" for field in counts)
        example = {".".join(field.path): field.value for field in counts[:2]}
        raise ConfigError(
            f"{type(config).__name__} has stacks of several depths ({known}): one number does not tell the base's. "
            f"Give base_depth= as a dict of those that differ from the model, such as {example}."
        )
    return {field.path: depth for field in counts}


def _named(config: Any, counts: Sequence[Field], depth: Mapping[str, Any]) -> dict[Path, Any]:
    known = {field.path: field.value for field in counts}
    chosen = {}
    for name, value in depth.items():
        path = path_of(config, name)
        if path not in known:
            raise ConfigError(
                f"{name!r} is no number of layers of {type(config).__name__}.{nearest(str(name), map('.'.join, known))}"
            )
        own = known[path]
        if isinstance(own, int) != (isinstance(value, int) and not isinstance(value, bool)) or not value:
            raise ConfigError(f"base_depth= has {name!r} = {value!r} where the model has {own!r}: give the same kind.")
        chosen[path] = value
    return chosen
