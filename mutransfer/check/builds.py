"""What may be checked at several widths: a factory, or a model or config that says how it is made at another width."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from mutransfer.errors import ConfigError
from mutransfer.planning.fields import HeadScaling
from mutransfer.planning.rebuild import has_config
from mutransfer.planning.resize import at_width

Build = Callable[[int], nn.Module]
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
    if isinstance(given, nn.Module):
        if not has_config(given):
            raise ConfigError(
                f"{type(given).__name__} has no .config to be rebuilt from at other widths. Give a function from width "
                "to model instead of one model."
            )
        return _scaled(type(given), given.config, scale)
    if callable(given):
        build: Build = given
        return build
    if hasattr(given, "model_type") and hasattr(given, "to_dict"):
        return _scaled(_transformers_model(given), given, scale)
    raise ConfigError(
        f"A {type(given).__name__} cannot be built at several widths. Give a function from width to model, a model "
        "with a .config, or a transformers config."
    )


def _scaled(make: Callable[[Any], nn.Module], config: Any, scale: HeadScaling) -> Build:
    config = copy.deepcopy(config)
    return lambda width: make(at_width(config, width, scale))


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
