"""The user's own model, from a function that takes a width."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mutransfer.errors import ConfigError, MutransferError, nearest
from mutransfer.train.settings import check_whole


@dataclass(frozen=True)
class FactoryConfig:
    """Where the function is and what it is called with.

    Attributes:
        path: "package.module:function"; modules in the current folder are found too.
        width: passed as `width=`.
        depth: passed as `depth=` where given; the function must then take it.
        kwargs: passed on.
    """

    path: str
    width: int
    depth: int | None = None
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_whole("model", self, "width", *(["depth"] if self.depth is not None else []))


def build_from_factory(config: FactoryConfig) -> nn.Module:
    """What the user's function returns.

    Raises:
        ConfigError: the function cannot be found or fails, or it returns no module.
    """
    make = _find(config.path)
    arguments = {"width": config.width, **config.kwargs}
    if config.depth is not None:
        arguments["depth"] = config.depth
    _check_arguments(config.path, make, arguments)
    try:
        model = make(**arguments)
    except MutransferError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"model.path={config.path} failed at {_shown(arguments)}: {_reason(error)}.") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.path={config.path} returned a {type(model).__name__}; a torch.nn.Module is expected.")
    return model


def _find(path: str) -> Callable[..., Any]:
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"model.path={path}: write it as package.module:function, such as mymodels.net:make.")
    module = _import(path, module_name)
    make = getattr(module, name, None)
    if make is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"model.path={path}: module {module_name} has no {name!r}.{nearest(name, known)}")
    if not callable(make):
        raise ConfigError(f"model.path={path} is a {type(make).__name__}; a function that takes width= is expected.")
    return make  # type: ignore[no-any-return]


def _import(path: str, module_name: str) -> Any:
    if os.getcwd() not in sys.path:  # a console script, unlike `python -m`, does not look there
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script that runs when it is imported may exit
        raise ConfigError(
            f"model.path={path} cannot be imported from {os.getcwd()}: {_reason(error)}. "
            "Run from the folder that holds the module, or install it."
        ) from error


def _check_arguments(path: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(make)
    except ValueError:  # some builtins have none: calling it will tell
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"model.path={path} cannot be called with {_shown(arguments)}: {error}. It takes {signature}; width is "
            "always given, depth where model.depth is set, and everything else comes from model.kwargs."
        ) from None


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
