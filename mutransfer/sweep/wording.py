"""What a value of the schema may be, in words of ours where OmegaConf speaks of its own types."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from types import NoneType
from typing import Any

from mutransfer.errors import ConfigError, nearest

LARGEST = 2**31
"""Above it no size, count or number of steps is meant; torch and numpy would overflow, each in its own words."""
LARGE = ("seed", "teacher_seed", "tokens")
"""Whole numbers that may be larger."""
_PLAIN = {
    int: "a whole number is expected, such as 64",
    float: "a number is expected, such as 0.001 or 2**-10",
    bool: "true or false is expected",
    str: "a text is expected",
}


def mistyped(kind: type, config: Mapping[str, Any], path: str, key: str) -> str:
    """The sentence for a value that has not the type that the schema gives it.

    Args:
        kind: the dataclass of the config.
        path: where in it the value stands, as OmegaConf says it: `lr.input`, `betas[1]`.
        key: the same for the reader, with the section's name.
    """
    annotation, value = typing.cast(Any, kind), typing.cast(Any, config)
    for name in re.findall(r"[^.\[\]]+", path):
        annotation, value = _inside(annotation, name), _item(value, name)
    if annotation is None:  # OmegaConf does not say of every item where it stands
        return f"{key.partition('.')[0]}: a value in it is of another type than `--help` shows for it."
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}: {_expected(annotation, key, value)}"


def refuse_huge(kind: type, config: Mapping[str, Any], prefix: str) -> None:
    """Raises ConfigError for a whole number that is beyond every use."""
    for name, annotation in typing.get_type_hints(kind).items():
        if name in LARGE or int not in _kinds(annotation):
            continue
        for value in _whole(config.get(name)):
            if abs(value) >= LARGEST:
                key = f"{prefix}.{name}" if prefix else name
                raise ConfigError(f"{key}={value}: it is too large. Give a whole number below 2**31.")


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """`int | None` and `list[int]` -> int, and what else is in it."""
    return typing.get_args(annotation) or (annotation,)


def _whole(value: Any) -> Iterator[int]:
    for item in value if isinstance(value, list) else (value,):
        if isinstance(item, int):
            yield item


def _inside(annotation: Any, name: str) -> Any:
    """The type of a field, or of an item of a list or map."""
    if is_dataclass(annotation):
        return typing.get_type_hints(annotation).get(name)
    return next(iter(reversed(typing.get_args(_given(annotation)))), None)


def _given(annotation: Any) -> Any:
    """Without `| None`."""
    kinds = [kind for kind in typing.get_args(annotation) if kind is not NoneType]
    return annotation if typing.get_origin(annotation) in (list, dict) or not kinds else kinds[0]


def _item(value: Any, name: str) -> Any:
    if isinstance(value, list) and name.isdigit():
        return value[int(name)]
    return value.get(name) if isinstance(value, Mapping) else value


def _expected(annotation: Any, key: str, value: Any) -> str:
    kind = _given(annotation)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"there is no such choice.{nearest(str(value), _names(kind))}"
    or_null = ", or null" if kind is not annotation else ""
    if typing.get_origin(kind) is list:
        example = {int: "[64,128,256]", float: "[0.9,0.95]"}.get(typing.get_args(kind)[0], "[one,two]")
        return f"a list is expected, such as {example}{or_null}."
    if is_dataclass(kind) or typing.get_origin(kind) is dict or kind not in _PLAIN:
        return f"a group of settings is expected: set them one by one, as in {key}.name=value{or_null}."
    return f"{_PLAIN[kind]}{or_null}."


def _names(kind: type[Enum]) -> Iterable[str]:
    return [member.name for member in kind]
