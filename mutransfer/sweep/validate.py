"""A resolved config held against the schema: every key known, every value of its type, and all of them possible."""

from __future__ import annotations

import functools
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from mutransfer.errors import ConfigError, RuleError, nearest
from mutransfer.rules.optimizers import OPTIMIZERS, find_optimizer
from mutransfer.rules.table import Parameterization, find_table
from mutransfer.rules.tables import PARAMETERIZATIONS
from mutransfer.sweep import schema
from mutransfer.sweep.models import DATA, MODELS
from mutransfer.sweep.wording import mistyped, refuse_huge

SECTIONS: Mapping[str, type | Mapping[str, type]] = {
    "model": MODELS,
    "data": DATA,
    "optimizer": dict.fromkeys(OPTIMIZERS, schema.AdamOptimizer) | {"sgd": schema.SGDOptimizer},
    "parameterization": schema.Parameterization,
    "hp": schema.Hyperparameters,
    "train": schema.Train,
    "precision": schema.PrecisionPolicy,
    "engine": {"local": schema.LocalEngine},
    "search": {"grid": schema.GridSearch},
    "logger": {"none": schema.NoLogger, "wandb": schema.WandbLogger},
}
"""Section -> its dataclass, or one dataclass per `name` of the section."""

ROOTS: Mapping[str, type] = {
    "train": schema.TrainRoot,
    "sweep": schema.TrialRoot,
    "check": schema.CheckRoot,
    "explain": schema.TrialRoot,
    "transfer": schema.TransferRoot,
}

_INTERPOLATION = re.compile(r"(\\*)\$\{")


def validate(root: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with every value in the type that its schema gives it, as JSON values.

    Raises:
        ConfigError: an unknown key (with the nearest known ones), a wrong type, or values that do not fit together.
    """
    own = {name: value for name, value in config.items() if name not in SECTIONS}
    typed = _typed(ROOTS[root], "", json.dumps(own))
    sections = {name: _section(name, value) for name, value in config.items() if name in SECTIONS}
    checked = {**typed, **sections}
    if "parameterization" in checked:
        _check_together(checked)
    return checked


def _section(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}={value}: it is a group of settings. Choose one of its options, or set {name}.KEY.")
    kinds = SECTIONS[name]
    if isinstance(kinds, Mapping):
        kind = str(value.get("name"))
        if kind not in kinds:
            raise ConfigError(f"There is no {name}.name={kind}.{nearest(kind, kinds)}")
        kinds = kinds[kind]
    return _typed(kinds, name, json.dumps(value))


@functools.lru_cache(maxsize=4096)
def _typed(kind: type, prefix: str, text: str) -> dict[str, Any]:
    """Cached by the section's text: the points of a sweep share most of their sections."""
    value = json.loads(text)
    _refuse_unknown(kind, value, prefix)
    refuse_huge(kind, value, prefix)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), _literally(value))
        OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{_key(prefix, error.full_key)} is missing: give it a value.") from None
    except ConfigKeyError as error:
        raise ConfigError(f"There is no config key {_key(prefix, error.full_key)!r}.") from None
    except OmegaConfBaseException as error:
        path = str(error.full_key)
        raise ConfigError(mistyped(kind, value, path, _key(prefix, path))) from None
    typed = OmegaConf.to_container(merged, resolve=True, enum_to_str=True)
    assert isinstance(typed, dict)
    return {str(name): item for name, item in typed.items()}


def _literally(value: Any) -> Any:
    """The config is resolved: what looks like an interpolation in it now is a text, such as a folder's name."""
    if isinstance(value, dict):
        return {name: _literally(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_literally(item) for item in value]
    return escape_interpolations(value) if isinstance(value, str) else value


def escape_interpolations(text: str) -> str:
    """The same text for a config that is yet to be resolved: `${` stands for itself there behind a backslash.

    >>> print(escape_interpolations("runs/${x}"))
    runs/\\${x}
    """
    return _INTERPOLATION.sub(lambda found: found[1] * 2 + "\\${", text)


def _refuse_unknown(kind: type, value: Mapping[str, Any], prefix: str) -> None:
    types = typing.get_type_hints(kind)
    for name, item in value.items():
        if name not in types:
            key, known = _key(prefix, name), [_key(prefix, known) for known in types]
            raise ConfigError(f"There is no config key {key!r}.{nearest(key, known)}")
        if is_dataclass(types[name]) and isinstance(item, Mapping):
            _refuse_unknown(typing.cast(type, types[name]), item, _key(prefix, name))


def _check_base(config: Mapping[str, Any], table: Parameterization) -> None:
    """The base is this very model at another size, so what a size must be holds for it too."""
    base = (
        {"width": config["base"]} if table.depth is None else {"width": config["base"], "depth": config["base_depth"]}
    )
    try:
        _section("model", {**config["model"], **base})
    except ConfigError as error:
        raise ConfigError(f"base={config['base']} is no width that this model can have: {error}") from None


def _check_depth(config: Mapping[str, Any], table: Parameterization) -> None:
    """Depths are needed by a table with depth rules, and the branches' multiplier is for no other."""
    if table.depth is None:
        free = config["hp"]["residual_mult"] == 1
        schema.require(
            free,
            f"hp.residual_mult={config['hp']['residual_mult']} scales residual branches, and parameterization="
            f"{table.name} has no depth rules. Use completep or depth-mup, or leave it at 1.",
        )
        return
    given = {"model.depth": config["model"]["depth"], "base_depth": config["base_depth"]}
    missing = [key for key, value in given.items() if value is None]
    schema.require(
        not missing,
        f"parameterization={table.name} scales with depth and needs {' and '.join(missing)}: give the number of "
        "blocks of the model as model.depth, and the one at which the hyperparameters hold as base_depth.",
    )


def _check_parts(config: Mapping[str, Any]) -> None:
    parts, size = config["train"]["accumulate"], config["data"]["batch_size"]
    if size % parts:
        raise ConfigError(f"train.accumulate={parts} does not divide data.batch_size={size}. Choose a divisor of it.")


def _check_together(config: Mapping[str, Any]) -> None:
    table = find_table(config["parameterization"]["name"], PARAMETERIZATIONS)
    _check_depth(config, table)
    _check_base(config, table)
    _check_parts(config)
    optimizer = find_optimizer(config["optimizer"]["name"])
    if optimizer.family not in table.families:
        raise RuleError(
            f"Parameterization {table.name!r} has no rule for optimizer {optimizer.name!r}. Choose "
            f"{', '.join(map(_chosen, table.optimizers))}, or another parameterization."
        )
    if optimizer.decay == "none" and config["optimizer"]["weight_decay"] > 0:
        raise RuleError(
            f"No width law is known for weight decay inside {optimizer.name}'s gradient. Use optimizer=adamw, or "
            f"optimizer.weight_decay=0, or ask for it by name: {_chosen('adam-l2')}."
        )


def _chosen(optimizer: str) -> str:
    """How the command line chooses it: adam-l2 is no option of its own, so that nobody has it who did not ask."""
    return "optimizer=adam optimizer.name=adam-l2" if optimizer == "adam-l2" else f"optimizer={optimizer}"


def _key(prefix: str, name: object) -> str:
    return f"{prefix}.{name}" if prefix else str(name)


@functools.lru_cache(maxsize=1)
def numeric_keys() -> frozenset[str]:
    """Every dotted key, of any model, data set or verb, that holds numbers: there arithmetic is allowed."""
    keys = {key for root in ROOTS.values() for key in _numeric(root, "")}
    for name, kinds in SECTIONS.items():
        for kind in kinds.values() if isinstance(kinds, Mapping) else (kinds,):
            keys |= set(_numeric(kind, name))
    return frozenset(keys)


@functools.lru_cache(maxsize=1)
def free_keys() -> frozenset[str]:
    """Every dotted key below which anything may be said, such as the keyword arguments of the user's own factory."""
    return frozenset(
        _key(name, field)
        for name, kinds in SECTIONS.items()
        for kind in (kinds.values() if isinstance(kinds, Mapping) else (kinds,))
        for field, annotation in typing.get_type_hints(kind).items()
        if typing.get_origin(annotation) is dict
    )


def choices(root: str, config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Dotted key -> its possible values, for every key of this config that has few of them."""
    kinds = {"": ROOTS[root]}
    for name, options in SECTIONS.items():
        chosen = options.get(config.get(name, {}).get("name")) if isinstance(options, Mapping) else options
        if chosen is not None and name in config:
            kinds[name] = chosen
    listed = ((_key(name, field), _listed(types)) for name, kind in kinds.items() for field, types in _types(kind))
    return {key: values for key, values in listed if values}


def _types(kind: type) -> Iterable[tuple[str, tuple[Any, ...]]]:
    for field, annotation in typing.get_type_hints(kind).items():
        yield field, typing.get_args(annotation) or (annotation,)


def _listed(types: Iterable[Any]) -> list[str]:
    values: list[str] = []
    for kind in types:
        if kind is bool:
            values += ["true", "false"]
        elif isinstance(kind, type) and issubclass(kind, Enum):
            values += [member.name for member in kind]
    return values


def _numeric(kind: type, prefix: str) -> Iterator[str]:
    types = typing.get_type_hints(kind)
    for field in fields(kind):
        annotation = types[field.name]
        if is_dataclass(annotation):
            yield from _numeric(typing.cast(type, annotation), _key(prefix, field.name))
        elif {int, float} & set(_alternatives(annotation)):
            yield _key(prefix, field.name)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The annotation itself and all that it is made of: of `list[int] | None` also int."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from _alternatives(part)
