"""How the same model is made at another width: a factory, its own config, or not at all."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import nn

from mutransfer.errors import ConfigError, MutransferError, ShapeError
from mutransfer.planning.depths import of_length, twice_as_deep
from mutransfer.planning.fields import Path
from mutransfer.planning.resize import grown, resized
from mutransfer.planning.sizes import Shapes, check_structure, shapes_of, without_memory
from mutransfer.planning.stacks import Stacks, compare_depths

Build = Callable[[], nn.Module]


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
    except MutransferError as error:  # a command line's factory has said what failed, and not why it was asked for
        raise ShapeError(f"{error} {advice}") from error
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
    """Whether `type(model)(model.config)` can be tried: with a mapping, or any object that holds fields."""
    config = getattr(model, "config", None)
    holds_fields = isinstance(config, Mapping) or hasattr(config, "__dict__")
    return holds_fields and not isinstance(config, type | nn.Module | ModuleType)


def from_config(model: nn.Module, base: Mapping[Path, Any], depth: Mapping[Path, Any] | None = None) -> Rebuilt:
    """Builders by the model's own config; the probes are of the model's depth.

    Args:
        model: has a `.config` that its class takes as its only argument.
        base: config fields at the base, by path.
        depth: those of its depth.

    Raises:
        ConfigError, ShapeError: no width is among them, or it does not build.
    """
    kind, config = type(model), copy.deepcopy(model.config)
    at_base = _shallower(base, depth or {})

    def make(changes: Mapping[Path, Any]) -> Build:
        return lambda: kind(copy.deepcopy(resized(config, changes)))

    def sizes(changes: Mapping[Path, Any]) -> Shapes:
        advice = "Give factory=, a function from width to model."
        return _sizes(
            make(changes), f"{kind.__name__} cannot be built with {_words(changes) or 'its own config'}", advice
        )

    if sizes({}) != shapes_of(model):
        raise ShapeError(
            f"{kind.__name__}(model.config) does not make this model again: its sizes are others. Give factory=."
        )
    probes = [sizes(grown(config, base, k)) for k in (1, 2, 3)]
    shapes = sizes(at_base)
    deeper = make({**base, **twice_as_deep(resized(config, at_base))})
    return Rebuilt(make(at_base), make({}), deeper, shapes, probes, _words(at_base))


def _shallower(widths: Mapping[Path, Any], depths: Mapping[Path, Any]) -> dict[Path, Any]:
    """Both; of a list of widths with an entry per layer, as many as there are layers."""
    both = [path for path in depths if isinstance(widths.get(path), list | tuple)]
    return {**widths, **depths} | {path: of_length(widths[path], len(depths[path])) for path in both}


def _words(changes: Mapping[Path, Any]) -> str:
    return ", ".join(f"{'.'.join(path)} {value}" for path, value in changes.items())
