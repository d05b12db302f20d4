"""How the same model is made at another width: a factory, its own config, or not at all."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from mutransfer.errors import ConfigError, MutransferError, ShapeError, nearest
from mutransfer.planning.depths import is_depth, twice_as_deep, with_depth
from mutransfer.planning.fields import Kind, Path, kind_of
from mutransfer.planning.sizes import Shapes, check_structure, shapes_of, without_memory
from mutransfer.planning.stacks import Stacks, compare_depths

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


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """How a model is made again at other sizes.

    Attributes:
        base, model: make the base, and the model itself.
        deeper: makes the base twice as deep, where its depth can be chosen.
        shapes: the base's.
        probes: sizes at once, twice and three times some width, at the depth of the base or of the model.
        words: what the base is.
    """

    base: Build
    model: Build
    deeper: Build | None
    shapes: Shapes
    probes: Sequence[Shapes]
    words: str


def from_factory(
    model: Shapes, factory: Callable[..., nn.Module], base: int, depth: int | Mapping[str, int] | None = None
) -> Rebuilt:
    """Builders by a function from width, or from width and depth; the model's own are found by matching its sizes.

    Raises:
        ConfigError, ShapeError: the factory makes another model, or takes no depth where one is given.
    """
    if isinstance(depth, Mapping):
        raise ConfigError("With factory= the base's depth is one number: base_depth=4, say.")
    _check_depth(depth)
    at_base = (base,) if depth is None else (base, depth)
    probes: list[Shapes] = [_from_user(factory, k * base, *at_base[1:]) for k in (1, 2, 3)]
    deeper = None
    own: tuple[int, ...] = ()
    if depth is None:
        stacks = Stacks.of_one_depth(model)
        check_structure(model, probes[0])
    else:
        stacks = compare_depths(probes[0], model)
        deeper = _made(factory, base, 2 * depth)
        own = (_depth_of(stacks, compare_depths(probes[0], _from_user(factory, base, 2 * depth)), depth),)
    width = _width_of(model, [stacks.seen_from_model(probe) for probe in probes], base)
    made = _from_user(factory, width, *own)
    if made != dict(model):
        wrong = next(name for name in {**model, **made} if model.get(name) != made.get(name))
        raise ShapeError(
            f"{_call(width, *own)} does not make this model: {wrong!r} is {model.get(wrong)} here and "
            f"{made.get(wrong)} there. The factory must rebuild the model from its {_ARGUMENTS[len(own)]} alone."
        )
    words = f"width {base} (model: {width})" + "".join(f", depth {depth} (model: {d})" for d in own)
    return Rebuilt(_made(factory, *at_base), _made(factory, width, *own), deeper, probes[0], probes, words)


_ARGUMENTS = ("width", "width and depth")


def _made(factory: Callable[..., nn.Module], *sizes: int) -> Build:
    return lambda: factory(*sizes)


def _call(*sizes: int) -> str:
    return f"factory({', '.join(map(str, sizes))})"


def _from_user(factory: Callable[..., nn.Module], *sizes: int) -> dict[str, tuple[int, ...]]:
    advice = "It must build the model at the base width and at two and three times that width."
    if len(sizes) > 1:
        advice = "With base_depth= it takes width and depth, and must build the base up to three times as wide or deep."
    return _sizes(_made(factory, *sizes), f"{_call(*sizes)} failed", advice)


def _sizes(build: Build, failed: str, advice: str) -> dict[str, tuple[int, ...]]:
    """The sizes of what the user's own code builds. Raises ShapeError where it does not build."""
    try:
        return shapes_of(without_memory(build))
    except MutransferError:
        raise
    except Exception as error:  # whatever a foreign constructor raises
        raise ShapeError(f"{failed}: {type(error).__name__}: {error}. {advice}") from error


def _depth_of(model: Stacks, twice: Stacks, depth: int) -> int:
    """The model's depth, from the blocks that it has, the base has, and the base has at twice its depth."""
    for stack, (at_base, at_twice) in twice.counts.items():
        if at_twice != at_base:
            here = model.counts.get(stack, (at_base, at_base))[1]
            return round(depth + (here - at_base) * depth / (at_twice - at_base))
    raise ShapeError("The factory makes the same model at every depth. Use its second argument for the depth.")


def _check_depth(depth: Any) -> None:
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 1):
        raise ConfigError(f"base_depth={depth!r} must be a number of blocks, a positive whole number.")


def _width_of(model: Shapes, probes: Sequence[Shapes], base: int) -> int:
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
    """The base's values of the fields in which two configs differ, those of depth left out."""
    names = [name for name in _fields(config) if hasattr(base, name) and not is_depth(name, config)]
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


def from_config(model: nn.Module, base: Mapping[str, Any], depth: Mapping[Path, Any] | None = None) -> Rebuilt:
    """Builders by the model's own config; the probes are of the model's depth.

    Args:
        model: has a `.config` that its class takes as its only argument.
        base: config fields at the base.
        depth: those of its depth, by path.
    """
    kind, config = type(model), copy.deepcopy(model.config)
    at_base = depth or {}

    def make(changes: Mapping[str, Any], depth: Mapping[Path, Any]) -> Build:
        return lambda: kind(copy.deepcopy(with_depth(with_fields(config, changes), depth)))

    def sizes(changes: Mapping[str, Any], depth: Mapping[Path, Any]) -> Shapes:
        named = {**changes, **{".".join(path): value for path, value in depth.items()}}
        values = ", ".join(f"{name} {value}" for name, value in named.items()) or "its own config"
        advice = "Give factory=, a function from width to model."
        return _sizes(make(changes, depth), f"{kind.__name__} cannot be built with {values}", advice)

    if sizes({}, {}) != shapes_of(model):
        raise ShapeError(
            f"{kind.__name__}(model.config) does not make this model again: its sizes are others. Give factory=."
        )
    widths = _widths(config, base)
    probes = [sizes({name: k * getattr(config, name) for name in widths}, {}) for k in (1, 2, 3)]
    deeper = make(base, twice_as_deep(with_depth(config, at_base)))
    words = [f"{name} {value}" for name, value in base.items()]
    words += [f"{'.'.join(path)} {value}" for path, value in at_base.items()]
    return Rebuilt(make(base, at_base), make({}, {}), deeper, sizes(base, at_base), probes, ", ".join(words))


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
