"""The directions in which a model grows, each with the config key that holds its size and its ratio's symbol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mutransfer.errors import ConfigError, nearest


@dataclass(frozen=True)
class Axis:
    """One direction of growth.

    Attributes:
        name: as in `target={"width": 1024}`.
        key: the config key of the size.
        symbol: how the papers write the ratio of target to base.
        base_key: the config key of the base's size; None where no table states one yet.
    """

    name: str
    key: str
    symbol: str
    base_key: str | None = None


AXES: Mapping[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("width", "model.width", "m_N", base_key="base"),
        Axis("depth", "model.depth", "m_L", base_key="base_depth"),
        Axis("batch", "data.batch_size", "m_B"),
        Axis("tokens", "train.steps", "m_D"),
    )
}


def find_axis(name: str) -> Axis:
    if name in AXES:
        return AXES[name]
    raise ConfigError(f"There is no axis {name!r}.{nearest(name, AXES)}")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config under dotted keys, as overrides write them."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
