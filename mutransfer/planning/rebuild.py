"""How the same model is made at another width: a factory, its own config, or not at all."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import nn

from mutransfer.errors import ConfigError, MutransferError, ShapeError, nearest
from mutransfer.planning.fields import Kind, kind_of
from mutransfer.planning.sizes import Shapes, check_structure, shapes_of, without_memory

Build = Callable[[], nn.Module]
HeadScaling = Literal["heads", "head_dim"]

PRIMARY = ("width", "hidden_size", "d_model", "n_embd", "embed_dim", "dim", "hidden_dim", "model_dim")
"""Config fields that are the width, the first one found being the one that `base=int` means."""
_FOLLOWING = re.compile(
    r"(.*_)?(intermediate_size|ffn_dim|n_inner|d_ff|d_inner|ffn_hidden_size|mlp_dim|feedforward_dim|dim_feedforward"
    r"|embedding_size|hidden_sizes|num_channels_list)"
)
_HEADS = re.compile(r"(.*_)?(num_attention_heads|num_key_value_heads|num_heads|n_heads?|n_kv_heads?|attention_heads)")
_HEAD_DIM = re.compile(r"(.*_)?(head_dim|d_kv|kv_channels)")
_GROWING = (Kind.WIDTH, Kind.OUTWARD, Kind.HEADS, Kind.HEAD_DIM, None)
"""What a config field may count that grows with width; None: its name is not known."""


def from_factory(
    model: Shapes, factory: Callable[[int], nn.Module], base: int
) -> tuple[Build, Build, list[Shapes], int]:
    """Builders of the base and of a model of the given shapes, the base's shapes at once, twice and three times its
    width, and the model's own width, found by matching its sizes.

    Raises:
        ShapeError: the factory makes another model.
    """
    probes: list[Shapes] = [_from_user(factory, k * base) for k in (1, 2, 3)]
    check_structure(model, probes[0])
    width = _width_of(model, probes, base)
    made = _from_user(factory, width)
    if made != dict(model):
        wrong = next(name for name in {**model, **made} if model.get(name) != made.get(name))
        raise ShapeError(
            f"factory({width}) does not make this model: {wrong!r} is {model.get(wrong)} here and {made.get(wrong)} "
            "there. The factory must rebuild the model from its width alone."
        )
    return (lambda: factory(base)), (lambda: factory(width)), probes, width


def _from_user(factory: Callable[[int], nn.Module], width: int) -> dict[str, tuple[int, ...]]:
    advice = "It must build the model at the base width and at two and three times that width."
    return _sizes(lambda: factory(width), f"factory({width}) failed", advice)


def _sizes(build: Build, failed: str, advice: str) -> dict[str, tuple[int, ...]]:
    """The sizes of what the user's own code builds. Raises ShapeError where it does not build."""
    try:
        return shapes_of(without_memory(build))
    except MutransferError:
        raise
    except Exception as error:  # whatever a foreign constructor raises
        raise ShapeError(f"{failed}: {type(error).__name__}: {error}. {advice}") from error


def _width_of(model: Shapes, probes: list[Shapes], base: int) -> int:
    """k * base, where the first size that grows is a*k + b."""
    for name, shape in probes[0].items():
        for axis, size in enumerate(shape):
            step = probes[1][name][axis] - size
            if step:
                return round((model[name][axis] - size + step) / step * base)
    raise ShapeError("The factory makes the same model at every width: nothing scales. Use its argument for the width.")


def has_config(model: nn.Module) -> bool:
    """Whether `type(model)(model.config)` can be tried."""
    return hasattr(model, "config") and (dataclasses.is_dataclass(model.config) or hasattr(model.config, "to_dict"))


def width_field(config: Any) -> str:
    """The config's own width field. Raises ConfigError where none is known."""
    for name in PRIMARY:
        if isinstance(getattr(config, name, None), int):
            return name
    raise ConfigError(
        f"{type(config).__name__} has no field known as a width ({', '.join(PRIMARY)}). "
        "Give base= as a dict of its width fields at the base, or give factory=."
    )


def base_fields(config: Any, width: int, scale: HeadScaling = "heads") -> dict[str, int]:
    """The config's values at another width: every field that follows the width is scaled by the same ratio."""
    own = getattr(config, width_field(config))
    followers = {name: getattr(config, name) for name in following_fields(config, scale)}
    _refuse_uneven(followers, width, own)
    return {width_field(config): width, **{name: value * width // own for name, value in followers.items()}}


def differing_fields(config: Any, base: Any) -> dict[str, Any]:
    """The base's values of the fields in which two configs differ."""
    names = [name for name in _fields(config) if hasattr(base, name)]
    return {name: getattr(base, name) for name in names if getattr(base, name) != getattr(config, name)}


def following_fields(config: Any, scale: HeadScaling = "heads") -> list[str]:
    """The fields that follow the width: feed-forward sizes, and head counts or head sizes."""
    heads = _HEADS if scale == "heads" else _HEAD_DIM
    names = [name for name in _fields(config) if _FOLLOWING.fullmatch(name) or heads.fullmatch(name)]
    return [name for name in names if isinstance(getattr(config, name, None), int) and getattr(config, name) > 0]


def with_fields(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of the config with other values. Raises ConfigError for a field that it does not have."""
    for name in changes:
        _refuse_unknown(config, name)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.replace(config, **changes)
    changed = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _fields(config: Any) -> Iterable[str]:
    if dataclasses.is_dataclass(config):
        return [f.name for f in dataclasses.fields(config)]
    return [name for name in config.to_dict() if not name.startswith("_")]


def _refuse_uneven(followers: Mapping[str, int], width: int, own: int) -> None:
    """Raises ConfigError where a field that follows the width would be no whole number; names the widths that do."""
    step = math.lcm(*(own // math.gcd(own, value) for value in followers.values()))
    below = width // step * step
    valid = " or ".join(str(near) for near in (below, below + step) if near)
    for name, value in followers.items():
        if value * width % own:
            raise ConfigError(
                f"At width {width}, config field {name!r} = {value} would become {value * width / own:g}, which is no "
                f"whole number. The nearest widths at which every field is one: {valid}."
            )


def given_fields(config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
    """The user's config fields of the base.

    Raises:
        ConfigError: one that the config does not have, or that differs from the model's and is no size.
    """
    for name, value in base.items():
        _refuse_unknown(config, name)
        own = getattr(config, name)
        if value != own and not (_is_size(value) and _is_size(own)):
            raise ConfigError(
                f"base= has {name!r} = {value!r} where the model has {own!r}: what differs must be a width, a positive "
                "whole number in both. Leave it out, or give factory=, a function from width to model."
            )
    return dict(base)


def from_config(model: nn.Module, base: Mapping[str, Any]) -> tuple[Build, Build, Shapes, list[Shapes]]:
    """Builders of the base and of the model from its own config, the base's shapes, and the model's at once, twice and
    three times its width.

    Args:
        model: has a `.config` that its class takes as its only argument.
        base: config fields at the base.
    """
    kind, config = type(model), copy.deepcopy(model.config)

    def make(changes: Mapping[str, Any]) -> Build:
        return lambda: kind(copy.deepcopy(with_fields(config, changes)))

    def sizes(changes: Mapping[str, Any]) -> Shapes:
        values = ", ".join(f"{name} {value}" for name, value in changes.items()) or "its own config"
        advice = "Give factory=, a function from width to model."
        return _sizes(make(changes), f"{kind.__name__} cannot be built with {values}", advice)

    if sizes({}) != shapes_of(model):
        raise ShapeError(
            f"{kind.__name__}(model.config) does not make this model again: its sizes are others. Give factory=."
        )
    widths = _widths(config, base)
    probes = [sizes({name: k * getattr(config, name) for name in widths}) for k in (1, 2, 3)]
    return make(base), make({}), sizes(base), probes


def _widths(config: Any, base: Mapping[str, Any]) -> list[str]:
    """The fields that grow: those in which base and model differ. Where they are of one size nothing differs, and a
    name that is known to count something else (a vocabulary) tells which are no widths."""
    sizes = [name for name in base if _is_size(base[name]) and _is_size(getattr(config, name))]
    differing = [name for name in sizes if base[name] != getattr(config, name)]
    widths = differing or [name for name in sizes if kind_of(name) in _GROWING]
    if not widths:
        raise ConfigError(
            f"base= has no width in it ({', '.join(map(str, base)) or 'it is empty'}): give the width fields of "
            f"{type(config).__name__} at the base, or factory=, a function from width to model."
        )
    return widths


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _refuse_unknown(config: Any, name: Any) -> None:
    if not isinstance(name, str) or not hasattr(config, name):
        raise ConfigError(f"{type(config).__name__} has no field {name!r}.{nearest(str(name), _fields(config))}")
