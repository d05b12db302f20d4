"""Reads one section of a resolved config into its frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mutransfer.errors import ConfigError, nearest

Settings = TypeVar("Settings")


def read_settings(
    kind: type[Settings], section: str, values: Mapping[str, Any], *, ignore: Iterable[str] = ("name",)
) -> Settings:
    """The dataclass filled from the mapping.

    Args:
        kind: a dataclass that checks its own values in `__post_init__`.
        section: the config section, for messages: "model", say.
        values: its keys.
        ignore: keys that others read.

    Raises:
        ConfigError: an unknown key, or a missing one.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = {field.name: field for field in fields}
    given = {key: _frozen(value) for key, value in values.items() if key not in set(ignore)}
    for key in given:
        if key not in known:
            hint = nearest(key, known)
            raise ConfigError(f"{section}={values.get('name', '')} has no setting {section}.{key}.{hint}")
    for name, field in known.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise ConfigError(f"{section}.{name} is missing: {section}={values.get('name', '')} needs it.")
    return kind(**given)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_positive(section: str, settings: object, *names: str) -> None:
    """Raises ConfigError unless each of the named fields is a number above 0."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"{section}.{name}={value}: it must be a number greater than 0.")


def check_whole(section: str, settings: object, *names: str) -> None:
    """Raises ConfigError unless each of the named fields is an integer above 0."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ConfigError(f"{section}.{name}={value}: it must be a whole number greater than 0.")


def check_choice(section: str, settings: object, name: str, choices: Iterable[str]) -> None:
    """Raises ConfigError unless the named field is one of the choices."""
    value, choices = getattr(settings, name), list(choices)
    if value not in choices:
        raise ConfigError(f"{section}.{name}={value} is not one of {', '.join(choices)}.{_close(value, choices)}")


def _close(value: object, choices: list[str]) -> str:
    hint = nearest(str(value), choices)
    return hint if "Did you mean" in hint else ""


def check_fraction(section: str, settings: object, *names: str) -> None:
    """Raises ConfigError unless each of the named fields is a number from 0 to 1."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigError(f"{section}.{name}={value}: it must be a number from 0 to 1.")
