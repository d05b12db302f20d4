"""A config at another size: every field that follows the width by one ratio, or the fields that the user names."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mutransfer.errors import ConfigError, nearest
from mutransfer.planning.fields import (
    PRIMARY,
    SMALLEST_WIDTH,
    Field,
    HeadScaling,
    Kind,
    Path,
    fields_of,
    inside,
    items_of,
    kind_of,
    mapped,
    numbers,
    primary_field,
    width_fields,
    with_values,
)

_GROWING = (Kind.WIDTH, Kind.OUTWARD, Kind.HEADS, Kind.HEAD_DIM, None)
"""What a config field may count that grows with width; None: its name is not known."""
_OF_HEADS = (Kind.HEADS, Kind.HEAD_DIM)


def at_width(config: Any, width: int, scale: HeadScaling = "heads") -> Any:
    """A copy of the config at another width. Raises ConfigError where a field would be no whole number."""
    return resized(config, width_changes(config, width, scale))


def resized(config: Any, changes: Mapping[Path, Any]) -> Any:
    """A copy of the config with other values.

    A dataclass is made anew, so that it can check them and derive others from them; what it holds and its constructor
    does not make of its own fields (what was given as further keywords, or set later) stays.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return with_values(config, changes)
    config = copy.deepcopy(config)
    inner: dict[str, dict[Path, Any]] = {}
    for path, value in changes.items():
        if len(path) > 1:
            inner.setdefault(path[0], {})[path[1:]] = value
    given = {path[0]: value for path, value in changes.items() if len(path) == 1}
    given |= {name: resized(inside(config, name), values) for name, values in inner.items()}
    made, same = _made_anew(config, given), _made_anew(config, {})
    for name, value in getattr(config, "__dict__", {}).items():
        if not _is_made(same, name, value):
            object.__setattr__(made, name, given.get(name, value))
    return made


def _made_anew(config: Any, given: Mapping[str, Any]) -> Any:
    """By its constructor, of its own fields but those that are given."""
    fields = {field.name: inside(config, field.name) for field in dataclasses.fields(config) if field.init}
    return type(config)(**copy.deepcopy({**fields, **given}))


def _is_made(same: Any, name: str, value: Any) -> bool:
    """Whether a config that is made anew holds this value by itself."""
    held = getattr(same, "__dict__", {})
    return name in held and bool(held[name] == value)


def own_width(config: Any) -> tuple[Path, int]:
    """Where a config holds its own width, and that; one without takes that of the first config in it that has one.

    Raises:
        ConfigError: none is known.
    """
    for path, inner in _configs(config):
        name = primary_field(inner)
        width = max(numbers(inside(inner, name)), default=0) if name else 0
        if name and width:
            first = next(number for number in numbers(inside(inner, name)) if number)
            return (*path, name), first
    raise ConfigError(
        f"{type(config).__name__} has no field known as a width ({', '.join(PRIMARY)}). "
        "Give base= as a dict of its width fields at the base, or give factory=."
    )


def width_changes(config: Any, width: int, scale: HeadScaling = "heads", *, heads: bool = True) -> dict[Path, Any]:
    """The values at another width of every field that follows it.

    Args:
        heads: whether numbers or sizes of heads follow too; some models multiply them into their widths themselves.

    Raises:
        ConfigError: a field would be no whole number; it names the widths at which none is.
    """
    primary, own = own_width(config)
    fields = [field for field in width_fields(config, scale) if heads or field.kind not in _OF_HEADS]
    if primary not in {field.path for field in fields}:
        fields.append(next(field for field in _known(config) if field.path == primary))
    following = {f.path: f for f in fields if f.path == primary or any(v >= _smallest(f) for v in numbers(f.value))}
    _refuse_uneven(following.values(), width, own)
    return {path: _scaled(field, width, own) for path, field in following.items()}


def _known(config: Any) -> Iterator[Field]:
    """All fields, one without a known kind as what its name in `PRIMARY` says."""
    yield from fields_of(config)
    for path, inner in _configs(config):
        name = primary_field(inner)
        if name is not None:
            yield Field((*path, name), inside(inner, name), Kind.WIDTH)


def _smallest(field: Field) -> int:
    return SMALLEST_WIDTH if field.kind in (Kind.WIDTH, Kind.OUTWARD) else 1


def _scaled(field: Field, width: int, own: int) -> Any:
    alone = isinstance(field.value, int)
    return mapped(field.value, lambda size: size * width // own if alone or size >= _smallest(field) else size)


def _refuse_uneven(fields: Iterable[Field], width: int, own: int) -> None:
    """Raises ConfigError where a field that follows the width would be no whole number; names the widths that do."""
    sizes = [(field, size) for field in fields for size in numbers(field.value) if size >= _smallest(field)]
    step = math.lcm(*(own // math.gcd(own, size) for _, size in sizes))
    below = width // step * step
    valid = " or ".join(str(near) for near in (below, below + step) if near)
    for field, size in sizes:
        if size * width % own:
            raise ConfigError(
                f"At width {width}, config field {'.'.join(field.path)!r} = {size} would become "
                f"{size * width / own:g}, which is no whole number. The nearest widths at which every field is one: "
                f"{valid}."
            )


# What the user names


def given_fields(config: Any, base: Mapping[Any, Any]) -> dict[Path, Any]:
    """The user's config fields of the base, by path: "hidden_size", or "text_config.hidden_size".

    Raises:
        ConfigError: one that the config does not have, or that differs from the model's and is no size.
    """
    changes = {}
    for name, value in base.items():
        path = path_of(config, name)
        own = value_at(config, path)
        lists = isinstance(value, list) and kind_of(path[-1]) is Kind.LAYER_LIST
        if value != own and not lists and not (_is_size(value) and _is_size(own)):
            raise ConfigError(
                f"base= has {name!r} = {value!r} where the model has {own!r}: what differs must be a width, a positive "
                "whole number in both. Leave it out, or give factory=, a function from width to model."
            )
        changes[path] = value
    return changes


def path_of(config: Any, name: Any) -> Path:
    """Where a config holds what the user calls by this name. Raises ConfigError for a field that it does not have."""
    inner, path = config, str(name).split(".") if isinstance(name, str) else [name]
    for i, part in enumerate(path):
        part = path[i] = (getattr(inner, "attribute_map", None) or {}).get(part, part)
        if not isinstance(part, str) or not _has(inner, part):
            known = [".".join((*path[:i], field)) for field in _names(inner)]
            raise ConfigError(f"{type(config).__name__} has no field {name!r}.{nearest(str(name), known)}")
        inner = inside(inner, part)
    return tuple(path)


def differing_fields(config: Any, base: Any) -> dict[Path, Any]:
    """The base's values of the fields in which two configs differ."""
    found = {}
    for path, inner in _configs(config):
        for name in _names(inner):
            own, other = (value_at(c, (*path, name), missing=None) for c in (config, base))
            if other is not None and own != other and not _is_config(own):
                found[(*path, name)] = other
    return found


def grown(config: Any, base: Mapping[Path, Any], k: int) -> dict[Path, Any]:
    """The config's own values k times as wide: of the fields in which base and model differ. Where they are of one
    size nothing differs, and a name that is known to count something else (a vocabulary) tells which are no widths.

    Raises:
        ConfigError: there is no width among them.
    """
    own = {path: value_at(config, path) for path in base}
    sizes = [path for path, value in own.items() if _is_size(value) and _is_size(base[path])]
    differing = [path for path in sizes if base[path] != own[path]]
    widths = differing or [path for path in sizes if kind_of(path[-1]) in _GROWING]
    if not widths:
        raise ConfigError(
            f"base= has no width in it ({', '.join('.'.join(path) for path in base) or 'it is empty'}): give the width "
            f"fields of {type(config).__name__} at the base, or factory=, a function from width to model."
        )
    return {path: _times(own[path], base[path], k) for path in widths}


def _times(own: Any, base: Any, k: int) -> Any:
    """Of a list what differs from the base's, or all widths in it where nothing does; the base's may be shorter, where
    it has an entry per layer."""
    if not isinstance(own, list | tuple):
        return own * k
    same = own == base
    pairs = zip(own, itertools.cycle(base), strict=False)
    return type(own)(_times(a, b, k) if (a >= SMALLEST_WIDTH if same else a != b) else a for a, b in pairs)


def value_at(config: Any, path: Path, **missing: Any) -> Any:
    """What a config holds there; `missing=` instead of an error."""
    for name in path:
        if missing and not _has(config, name):
            return missing["missing"]
        config = inside(config, name)
    return config


def _configs(config: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """A config and those inside it, the outermost first."""
    yield path, config
    for name in _names(config):
        inner = inside(config, name)
        if _is_config(inner):
            yield from _configs(inner, (*path, name))


def _is_config(value: Any) -> bool:
    return hasattr(value, "to_dict") or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _names(config: Any) -> list[str]:
    if dataclasses.is_dataclass(config):
        return [field.name for field in dataclasses.fields(config)]
    return [name for name in (config if isinstance(config, Mapping) else vars(config)) if not name.startswith("_")]


def _has(config: Any, name: str) -> bool:
    return name in items_of(config) if isinstance(config, list | tuple | Mapping) else hasattr(config, name)


def _is_size(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(_is_size(v) for v in value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
