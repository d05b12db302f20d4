"""What may be checked at several sizes: a factory, or a model or config that says how it is made at another size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from mutransfer.errors import ConfigError
from mutransfer.planning.depths import depth_values
from mutransfer.planning.fields import HeadScaling
from mutransfer.planning.rebuild import has_config
from mutransfer.planning.resize import at_width, own_width, resized

Build = Callable[[int], nn.Module]
BuildDeep = Callable[[int, int], nn.Module]
_WITH_A_READOUT = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModelForSequenceClassification",
    "AutoModelForAudioClassification",
)
"""transformers' factories, the first that knows a config being the one that makes its model."""


def builder(given: Any, scale: HeadScaling) -> Build:
    """width -> fresh model, every config field that follows the width scaled as for `parameterize(base=int)`.

    Args:
        given: such a function already; a model that its class rebuilds from its `.config`; or a transformers config.
        scale: what grows with the width in attention: the number of heads, or their size.

    Raises:
        ConfigError: none of these.
    """
    found = _from_config(given, "a function from width to model")
    if found is None:
        build: Build = given
        return build
    make, config = found
    return lambda width: make(at_width(config, width, scale))


def deep_builder(given: Any, scale: HeadScaling) -> tuple[BuildDeep, int | None]:
    """(width, depth) -> fresh model, by the config's own fields, and the width that the config has itself.

    Args:
        given: as for `builder`, a function being one from width and depth.
        scale: as for `builder`.

    Raises:
        ConfigError: none of these.
    """
    found = _from_config(given, "a function from width and depth to model")
    if found is None:
        build: BuildDeep = given
        return build, None
    make, config = found

    def deep(width: int, depth: int) -> nn.Module:
        sized = at_width(config, width, scale)
        return make(resized(sized, depth_values(sized, depth)))

    return deep, own_width(config)[1]


def _from_config(given: Any, function: str) -> tuple[Callable[[Any], nn.Module], Any] | None:
    """How the given is made, and from what config; None for a function."""
    if isinstance(given, nn.Module):
        if not has_config(given):
            raise ConfigError(
                f"{type(given).__name__} has no .config to be rebuilt from at other sizes. Give {function} instead of "
                "one model."
            )
        return type(given), copy.deepcopy(given.config)
    if callable(given):
        return None
    if hasattr(given, "model_type") and hasattr(given, "to_dict"):
        return _transformers_model(given), copy.deepcopy(given)
    raise ConfigError(
        f"A {type(given).__name__} cannot be built at several sizes. Give {function}, a model with a .config, or a "
        "transformers config."
    )


def _transformers_model(config: Any) -> Callable[[Any], nn.Module]:
    """The class that the config names, else the first one with a readout that is registered for it."""
    import transformers

    named = [getattr(transformers, name, None) for name in getattr(config, "architectures", None) or ()]
    if named and named[0] is not None:
        first: Callable[[Any], nn.Module] = named[0]
        return first
    for name in _WITH_A_READOUT:
        if type(config) in getattr(transformers, name)._model_mapping:
            make: Callable[[Any], nn.Module] = getattr(transformers, name).from_config
            return make
    raise ConfigError(
        f"transformers has no model with a readout for {type(config).__name__}. Give a model, or a function from width "
        "to model."
    )
