"""The keyword arguments of `parameterize`, checked before a model is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from mutransfer.errors import ConfigError, RuleError, nearest
from mutransfer.planning.data import Form, Init
from mutransfer.planning.fields import HeadScaling
from mutransfer.planning.hyperparameters import Hyperparameters, parse_hyperparameters
from mutransfer.rules.depth import Place
from mutransfer.rules.optimizers import Optimizer, find_optimizer
from mutransfer.rules.table import Parameterization, Role, find_table
from mutransfer.rules.tables import PARAMETERIZATIONS


@dataclass(frozen=True)
class Options:
    """What is asked for, whatever the model."""

    table: Parameterization
    optimizer: Optimizer
    form: Form
    init: Init
    scale: HeadScaling
    roles: Mapping[str, str]
    places: Mapping[str, Place]
    hyperparameters: Hyperparameters
    strict: bool


def make_options(
    parameterization: str | Parameterization,
    optimizer: str,
    *,
    form: str = "auto",
    init: str = "rescale",
    scale: str = "heads",
    roles: Mapping[str, str] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    strict: bool = True,
) -> Options:
    """Reads the arguments; see `mutransfer.parameterize`.

    Raises:
        RuleError: unknown parameterization or optimizer, or a table without the optimizer's column.
        ConfigError: an unknown choice, or a hyperparameter out of range.
    """
    _refuse_no_mapping("roles", roles, {"*.router.weight": "output"})
    _refuse_no_mapping("hyperparameters", hyperparameters, {"output_mult": 2.0})
    table = find_table(parameterization, PARAMETERIZATIONS)
    family = find_optimizer(optimizer)
    table.rule(Role.HIDDEN, family)
    choices = {"form": (form, Form), "init": (init, Init), "scale": (scale, HeadScaling)}
    for name, (value, allowed) in choices.items():
        if value not in get_args(allowed):
            raise ConfigError(f"{name}={value!r} is not a choice.{nearest(str(value), get_args(allowed))}")
    if not isinstance(strict, bool):
        raise ConfigError(f"{strict=} is not a choice: True raises where a role cannot be proven, False guesses it.")
    own = parse_hyperparameters(hyperparameters)
    if own.residual_mult != 1.0 and table.depth is None:
        raise RuleError(
            f"residual_mult scales residual branches, and {table.name!r} is a table of widths only. Use 'completep' or "
            "'depth-mup', or leave it at 1."
        )
    named = {str(pattern): str(role) for pattern, role in (roles or {}).items()}
    places = {pattern: Place(role) for pattern, role in named.items() if role in set(Place)}
    if places and table.depth is None:
        raise RuleError(f"roles= names {next(iter(places.values()))!r}, a place in depth, and {table.name!r} has none.")
    named = {pattern: role for pattern, role in named.items() if pattern not in places}
    return Options(table, family, form, init, scale, named, places, own, strict)  # type: ignore[arg-type]


def _refuse_no_mapping(name: str, given: Any, example: Mapping[str, Any]) -> None:
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"{name}= is of type {type(given).__name__}. Give a dict, such as {name}={example}.")
